//! The API server alone, for trying a client against it: `cargo run -p portolan-apiserver --example serve DIR PORT`.

use std::net::SocketAddr;

use portolan_apiserver::{ApiServer, Config};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(port)) = (args.next(), args.next()) else { return Err("usage: serve DIR PORT".into()) };
    let mut config = Config::new(dir);
    config.port = port.parse()?;
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], config.port))).await?;
    let server = ApiServer::open(config).await?;
    println!("export KUBECONFIG={}", server.kubeconfig().display());
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        on_signal.cancel();
    });
    server.serve(listener, stop).await;
    server.close();
    Ok(())
}
