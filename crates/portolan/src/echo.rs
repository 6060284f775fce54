//! The built-in image `portolan.dev/echo`: answers HTTP, TCP and UDP with who answers and who asked, so that a first
//! run needs no registry and a test sees where a connection went.

use std::net::{Ipv6Addr, SocketAddr};

use crate::say::say;
use anyhow::{Context, Result};
use axum::{Router, extract::ConnectInfo, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

/// Ports served at once.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Ports for HTTP
    #[arg(long, value_name = "PORT", value_delimiter = ',', default_values_t = [80, 8080])]
    http: Vec<u16>,
    /// Ports for TCP and UDP: each chunk or datagram comes back behind a line that says who answers
    #[arg(long, value_name = "PORT", value_delimiter = ',', default_values_t = [7])]
    echo: Vec<u16>,
}

fn pod() -> String {
    nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Three lines: pod, address, client. IPv4 addresses are shown as such although the sockets are dual stack.
fn identity(local: SocketAddr, client: SocketAddr) -> String {
    let plain = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    format!("pod: {}\naddress: {}\nclient: {}\n", pod(), plain(local), plain(client))
}

async fn serve_http(listener: TcpListener) -> Result<()> {
    let local = listener.local_addr()?;
    let router = Router::new().route("/hostname", get(async || format!("{}\n", pod()))).fallback(
        move |ConnectInfo(client): ConnectInfo<SocketAddr>| async move { identity(local_of(client, local), client) },
    );
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// The listener is bound to "any"; the address this host uses towards the client is the one the client reached
/// in every layout with one address per pod.
fn local_of(client: SocketAddr, listener: SocketAddr) -> SocketAddr {
    let ip = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .and_then(|s| s.connect(client).and_then(|()| s.local_addr()))
        .map(|a| a.ip())
        .unwrap_or(listener.ip());
    SocketAddr::new(ip, listener.port())
}

async fn serve_tcp(listener: TcpListener) -> Result<()> {
    loop {
        let (mut stream, client) = listener.accept().await?;
        tokio::spawn(async move {
            let Ok(local) = stream.local_addr() else { return };
            if stream.write_all(identity(local, client).as_bytes()).await.is_err() {
                return;
            }
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn serve_udp(socket: UdpSocket) -> Result<()> {
    let local = socket.local_addr()?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (n, client) = socket.recv_from(&mut buffer).await?;
        let mut answer = identity(local_of(client, local), client).into_bytes();
        answer.extend_from_slice(&buffer[..n]);
        answer.truncate(buffer.len() - 28);
        // A client that went away is its own affair.
        let _ = socket.send_to(&answer, client).await;
    }
}

#[tokio::main(flavor = "current_thread")]
pub async fn run(options: &Options) -> Result<i32> {
    let any = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let mut tasks = JoinSet::new();
    for &port in &options.http {
        tasks.spawn(serve_http(TcpListener::bind(any(port)).await.with_context(|| format!("HTTP port {port}"))?));
    }
    for &port in &options.echo {
        tasks.spawn(serve_tcp(TcpListener::bind(any(port)).await.with_context(|| format!("TCP port {port}"))?));
        tasks.spawn(serve_udp(UdpSocket::bind(any(port)).await.with_context(|| format!("UDP port {port}"))?));
    }
    let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    say!("{} answers HTTP on {} and TCP and UDP on {}", pod(), list(&options.http), list(&options.echo));
    // As process 1 of a container, signals without a handler are ignored: take them.
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        Some(ended) = tasks.join_next() => ended??,
        _ = terminate.recv() => {}
        r = tokio::signal::ctrl_c() => r?,
    }
    Ok(0)
}
