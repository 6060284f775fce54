//! Probes: one attempt of each kind with kubelet's words for its failure, and the schedule of attempts. What a result
//! leads to (ready, restart) is decided by the caller.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container as ContainerSpec, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{net::TcpStream, sync::mpsc, time::Instant};

use crate::{
    container::{Container, Runtime},
    shim::exec::ExecResult,
};

mod tls;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens: the program may simply not be that far.
    Refused(String),
    Other(String),
}

impl Failure {
    pub fn text(&self) -> &str {
        match self {
            Self::Refused(t) | Self::Other(t) => t,
        }
    }
}

/// What a probe's schedule reports: a threshold was reached, or an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    Passed(Kind),
    Failed(Kind),
    /// For the Event `Unhealthy`.
    Attempt(Kind, String),
}

/// Where the probes of one container go.
#[derive(Clone)]
pub struct Target {
    pub ip: IpAddr,
    pub spec: Arc<ContainerSpec>,
    pub container: Arc<Container>,
    pub runtime: Arc<Runtime>,
}

const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;
/// Between two attempts to find a program that has just been started.
const EAGER_LONGEST: Duration = Duration::from_millis(200);

/// Attempts on kubelet's schedule until the receiver is gone. One thing is done sooner: until a readiness or startup
/// probe has passed once, an attempt that finds nobody listening is repeated within the first period, at growing
/// intervals, and does not count. The program cannot see such attempts, and a pod becomes ready when it is, not up to a period later.
pub async fn run(kind: Kind, probe: Probe, target: Target, reports: mpsc::Sender<Report>) {
    let seconds = |v: Option<i32>, default: i32| Duration::from_secs(v.unwrap_or(default).max(0) as u64);
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    let needed = probe.success_threshold.unwrap_or(1).max(1);
    let allowed = probe.failure_threshold.unwrap_or(3).max(1);
    let (mut passed, mut failed, mut ever) = (0, 0, false);
    let started = Instant::now() + seconds(probe.initial_delay_seconds, 0);
    let mut next = started;
    let mut soon = Duration::from_millis(5);
    loop {
        tokio::time::sleep_until(next).await;
        let began = Instant::now();
        let result = attempt(&probe, &target, timeout).await;
        let eager = kind != Kind::Liveness && !ever && failed == 0 && began - started < period;
        next = began + period;
        let send = match result {
            Ok(()) => {
                (passed, failed) = (passed + 1, 0);
                ever |= passed >= needed;
                if passed == needed { reports.send(Report::Passed(kind)).await } else { Ok(()) }
            }
            Err(Failure::Refused(_)) if eager => {
                next = Instant::now() + soon;
                soon = (soon * 3 / 2).min(EAGER_LONGEST);
                continue;
            }
            Err(failure) => {
                (passed, failed) = (0, failed + 1);
                let text = failure.text().to_owned();
                match reports.send(Report::Attempt(kind, text)).await {
                    Ok(()) if failed == allowed => reports.send(Report::Failed(kind)).await,
                    other => other,
                }
            }
        };
        if send.is_err() {
            return;
        }
        if kind == Kind::Startup && ever {
            return;
        }
    }
}

async fn attempt(probe: &Probe, target: &Target, timeout: Duration) -> Result<(), Failure> {
    if let Some(exec) = &probe.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        return match target.runtime.exec(&target.container, command, timeout).await {
            ExecResult::Exited { code: 0, .. } => Ok(()),
            ExecResult::Exited { output, .. } => Err(Failure::Other(output)),
            ExecResult::TimedOut { .. } => {
                let command = command.join(" ");
                Err(Failure::Other(format!("command timed out: {command:?} timed out after {}s", timeout.as_secs())))
            }
            ExecResult::Failed(e) => Err(Failure::Other(format!("command failed: {e}"))),
        };
    }
    if let Some(http) = &probe.http_get {
        return http_get(http, target, timeout).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = port(&tcp.port, &target.spec)?;
        let host = tcp.host.clone().unwrap_or_default();
        return connect(&host, target.ip, port, timeout).await.map(drop);
    }
    Err(Failure::Other("missing probe handler: only exec, httpGet and tcpSocket are supported".into()))
}

/// One request, for hooks as well as for probes.
pub async fn http_get(http: &HTTPGetAction, target: &Target, timeout: Duration) -> Result<(), Failure> {
    let port = port(&http.port, &target.spec)?;
    let scheme = http.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
    let host = http.host.clone().filter(|h| !h.is_empty());
    let shown = host.clone().unwrap_or_else(|| bracketed(target.ip));
    let path = http.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let first = format!("{scheme}://{shown}:{port}{slash}{path}");
    let name = |e: String| format!("Get {first:?}: {e}");
    let fetch = async {
        let mut url = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (status, location, body) = request(&url, http, target, timeout).await?;
            match (status, location.and_then(|l| resolve(&url, &l))) {
                (300..=399, Some(to)) if same_host(&url, &to) => url = to,
                (200..=399, _) => return Ok(()),
                (status, _) => {
                    tracing::debug!(url, status, body, "probe failed");
                    return Err(Failure::Other(format!("HTTP probe failed with statuscode: {status}")));
                }
            }
        }
        Err(Failure::Other(name(format!("stopped after {MAX_REDIRECTS} redirects"))))
    };
    match tokio::time::timeout(timeout, fetch).await {
        Ok(Err(Failure::Refused(e))) => Err(Failure::Refused(name(e))),
        Ok(Err(Failure::Other(e))) if !e.starts_with("HTTP probe") && !e.starts_with("Get ") => {
            Err(Failure::Other(name(e)))
        }
        Ok(other) => other,
        Err(_) => Err(Failure::Other(name(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into(),
        ))),
    }
}

async fn request(
    url: &str,
    http: &HTTPGetAction,
    target: &Target,
    timeout: Duration,
) -> Result<(u16, Option<String>, String), Failure> {
    let uri: Uri = url.parse().map_err(|e| Failure::Other(format!("{e}")))?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let stream = connect(&host, target.ip, port, timeout).await?;
    let authority = uri.authority().map(|a| a.to_string()).unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let mut builder = Request::get(path).header(header::USER_AGENT, "kube-probe/1.36").header(header::ACCEPT, "*/*");
    let own = http.http_headers.as_deref().unwrap_or_default();
    if !own.iter().any(|h| h.name.eq_ignore_ascii_case("host")) {
        builder = builder.header(header::HOST, authority);
    }
    for h in own {
        // A header that is set replaces the default; one without value removes it.
        if let Some(map) = builder.headers_mut()
            && let Ok(name) = header::HeaderName::try_from(&h.name)
        {
            map.remove(&name);
            if !h.value.is_empty()
                && let Ok(value) = header::HeaderValue::try_from(&h.value)
            {
                map.append(name, value);
            }
        }
    }
    let request = builder
        .header(header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| Failure::Other(e.to_string()))?;
    let response = if uri.scheme_str() == Some("https") {
        send(tls::connect(stream, &host).await.map_err(Failure::Other)?, request).await?
    } else {
        send(stream, request).await?
    };
    let status = response.status().as_u16();
    let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    Ok((status, location, String::from_utf8_lossy(&body).into_owned()))
}

async fn send<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: Request<Empty<bytes::Bytes>>,
) -> Result<hyper::Response<hyper::body::Incoming>, Failure> {
    let fail = |e: hyper::Error| {
        // What Go's client says when a server closes the connection instead of answering.
        Failure::Other(if e.is_incomplete_message() { "EOF".into() } else { e.to_string() })
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(fail)?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(fail)
}

async fn connect(host: &str, ip: IpAddr, port: u16, timeout: Duration) -> Result<TcpStream, Failure> {
    // `host` is the pod itself unless the probe names another; a name is looked up as the node does.
    let addresses: Vec<SocketAddr> = match host {
        "" => vec![SocketAddr::new(ip, port)],
        host => match host.parse() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => tokio::net::lookup_host((host, port))
                .await
                .map_err(|_| Failure::Other(format!("dial tcp: lookup {host}: no such host")))?
                .collect(),
        },
    };
    let shown = addresses.first().copied().unwrap_or(SocketAddr::new(ip, port));
    match tokio::time::timeout(timeout, TcpStream::connect(&addresses[..])).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(Failure::Refused(format!("dial tcp {shown}: connect: connection refused")))
        }
        Ok(Err(e)) => Err(Failure::Other(format!("dial tcp {shown}: connect: {}", errno_text(&e)))),
        Err(_) => Err(Failure::Other(format!("dial tcp {shown}: i/o timeout"))),
    }
}

fn errno_text(e: &std::io::Error) -> String {
    match e.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => e.to_string(),
    }
}

fn port(port: &IntOrString, spec: &ContainerSpec) -> Result<u16, Failure> {
    let number = match port {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => {
            let named = spec.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port);
            named.or_else(|| name.parse().ok())
        }
    };
    match number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0) {
        Some(port) => Ok(port),
        None => {
            let text = match port {
                IntOrString::Int(n) => n.to_string(),
                IntOrString::String(s) => s.clone(),
            };
            Err(Failure::Other(format!("couldn't find port: {text:?} in container {:?}", spec.name)))
        }
    }
}

fn bracketed(ip: IpAddr) -> String {
    if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
}

fn same_host(a: &str, b: &str) -> bool {
    let host = |u: &str| u.parse::<Uri>().ok().and_then(|u| u.host().map(str::to_owned));
    host(a) == host(b)
}

/// The address a `Location` header means, seen from `base`.
fn resolve(base: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    let uri: Uri = base.parse().ok()?;
    let origin = format!("{}://{}", uri.scheme_str()?, uri.authority()?);
    if location.starts_with('/') {
        return Some(format!("{origin}{location}"));
    }
    let dir = uri.path().rsplit_once('/').map_or("", |(d, _)| d);
    Some(format!("{origin}{dir}/{location}"))
}

#[cfg(test)]
mod tests;
