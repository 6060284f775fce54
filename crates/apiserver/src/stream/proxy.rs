//! `pods/[SCHEME:]NAME[:PORT]/proxy/PATH` and the same for Services: an HTTP request handed on to a pod, its answer handed
//! back, upgrades included. Only plain HTTP; pages are not rewritten, redirects are.

use std::{net::IpAddr, time::Duration};

use axum::{body::Body, response::Response};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri,
    header::{self},
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{PodPort, names};
use crate::{handlers::Api, kinds, request::Target, status::Failure};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers of one connection, not of the message (RFC 9110, section 7.6.1).
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// `[SCHEME:]NAME[:PORT]`
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    name: &'a str,
    port: &'a str,
}

fn asked<'a>(target: &'a Target) -> Result<Asked<'a>, Failure> {
    let singular = target.kind.singular;
    let parts: Vec<&str> = target.name.split(':').collect();
    let (scheme, name, port) = match parts[..] {
        [name] => ("", name, ""),
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => return Err(Failure::bad_request(format!("invalid {singular} request {:?}", target.name))),
    };
    match scheme {
        "" | "http" if !name.is_empty() => Ok(Asked { name, port }),
        "https" => Err(Failure::bad_request(format!(
            "invalid {singular} request {:?}: only http can be proxied here; port-forward reaches https",
            target.name
        ))),
        _ => Err(Failure::bad_request(format!("invalid {singular} request {:?}", target.name))),
    }
}

/// Hands the request on.
pub(crate) async fn serve(api: &Api, target: &Target, request: Request<Body>) -> Result<Response, Failure> {
    let asked = asked(target)?;
    let path = request.uri().path().to_owned();
    let (base, rest) = split(&path);
    let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let Some(rest) = rest else {
        // Relative links of the page would lead elsewhere.
        return Response::builder()
            .status(StatusCode::MOVED_PERMANENTLY)
            .header(header::LOCATION, format!("{base}/{query}"))
            .body(Body::empty())
            .map_err(Failure::internal);
    };
    let to = if target.kind.plural == "services" {
        service_port(api, target, &asked)?
    } else {
        pod_port(api, target, &asked)?
    };
    if to.pod_ip.is_some_and(|ip| ip.is_loopback()) {
        return Err(Failure::bad_request("address not allowed"));
    }
    let uri: Uri = format!("{rest}{query}").parse().map_err(|e| Failure::bad_request(format!("{rest}: {e}")))?;
    let address = to.pod_ip.map_or_else(String::new, |ip| std::net::SocketAddr::new(ip, to.port).to_string());
    let answer = exchange(api, to, &address, uri, request);
    let mut answer = answer.await.map_err(|e| Failure::unavailable(format!("error trying to reach service: {e}")))?;
    let moved =
        answer.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).and_then(|l| moved(l, base, &address));
    if let Some(location) = moved.and_then(|l| HeaderValue::from_str(&l).ok()) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    Ok(answer)
}

/// The path up to `proxy`, and what follows it, still encoded; `None` without so much as a slash.
fn split(path: &str) -> (&str, Option<&str>) {
    // /api/v1/namespaces/NAMESPACE/pods/NAME/proxy
    match path.match_indices('/').nth(7) {
        Some((at, _)) => (&path[..at], Some(&path[at..])),
        None => (path, None),
    }
}

/// Where a redirect leads as the client sees it, if it stays at the pod.
fn moved(location: &str, base: &str, address: &str) -> Option<String> {
    let own = location.strip_prefix("http://").and_then(|l| l.strip_prefix(address)).unwrap_or(location);
    if own.is_empty() {
        return Some(format!("{base}/"));
    }
    (own.starts_with('/') && !own.starts_with("//")).then(|| format!("{base}{own}"))
}

fn pod_port(api: &Api, target: &Target, asked: &Asked<'_>) -> Result<PodPort, Failure> {
    let pod = api.get(target.kind, &target.namespace, asked.name)?.value();
    let port = if asked.port.is_empty() {
        let ports = pod["spec"]["containers"].as_array().into_iter().flatten();
        ports
            .filter_map(|c| c["ports"][0]["containerPort"].as_u64())
            .next()
            .and_then(|p| u16::try_from(p).ok())
            .unwrap_or(80)
    } else {
        let bad = || Failure::bad_request(format!("invalid pod request {:?}", target.name));
        asked.port.parse().ok().filter(|p| *p > 0).ok_or_else(bad)?
    };
    let pod_ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
    if pod_ip.is_none() {
        return Err(Failure::unavailable(format!("pod {} has no address yet", asked.name)));
    }
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("").to_owned();
    Ok(PodPort { node, namespace: target.namespace.clone(), pod: asked.name.to_owned(), pod_ip, port })
}

/// One of the ready endpoints behind the Service's port.
fn service_port(api: &Api, target: &Target, asked: &Asked<'_>) -> Result<PodPort, Failure> {
    let service = api.get(target.kind, &target.namespace, asked.name)?.value();
    let ports: Vec<&Value> = service["spec"]["ports"].as_array().into_iter().flatten().collect();
    let port_name = |port: &Value| port["name"].as_str().unwrap_or("").to_owned();
    let wanted = match asked.port {
        "" if ports.len() == 1 => port_name(ports[0]),
        "" => String::new(),
        number if number.parse::<u16>().is_ok() => {
            let found = ports.iter().find(|p| p["port"].to_string() == number);
            let missing =
                || Failure::unavailable(format!("no service port {number:?} found for service {:?}", asked.name));
            port_name(found.ok_or_else(missing)?)
        }
        name => name.to_owned(),
    };
    let none = || Failure::unavailable(format!("no endpoints available for service {:?}", asked.name));
    let kind = kinds::find("", "v1", "endpoints").ok_or_else(none)?;
    let endpoints = api.get(kind, &target.namespace, asked.name).map_err(|_| none())?.value();
    let mut found: Vec<PodPort> = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        let ports = subset["ports"].as_array().into_iter().flatten();
        for number in ports.filter(|p| port_name(p) == wanted).filter_map(|p| p["port"].as_u64()) {
            for address in subset["addresses"].as_array().into_iter().flatten() {
                let ip: Option<IpAddr> = address["ip"].as_str().and_then(|ip| ip.parse().ok());
                if let (Some(ip), Ok(port)) = (ip, u16::try_from(number)) {
                    found.push(PodPort {
                        node: address["nodeName"].as_str().unwrap_or("").to_owned(),
                        namespace: target.namespace.clone(),
                        pod: address["targetRef"]["name"].as_str().unwrap_or("").to_owned(),
                        pod_ip: Some(ip),
                        port,
                    });
                }
            }
        }
    }
    if found.is_empty() {
        return Err(none());
    }
    Ok(found.swap_remove(rand::random_range(0..found.len())))
}

async fn exchange(api: &Api, to: PodPort, address: &str, uri: Uri, request: Request<Body>) -> Result<Response, String> {
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, api.nodes.connect(to)).await;
    let connection = connection.map_err(|_| format!("dial tcp {address}: i/o timeout"))??;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(connection)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    let stop = api.stopping.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = connection.with_upgrades() => {}
            () = stop.cancelled() => {}
        }
    });
    let (mut parts, body) = request.into_parts();
    let near = parts.extensions.remove::<OnUpgrade>();
    let protocol = upgrade_of(&parts.headers);
    strip(&mut parts.headers);
    // These were for this server.
    parts.headers.remove(header::AUTHORIZATION);
    if let Ok(host) = HeaderValue::from_str(address) {
        parts.headers.insert(header::HOST, host);
    }
    restore(&mut parts.headers, protocol.clone());
    let mut onwards = Request::new(body);
    *onwards.method_mut() = parts.method;
    *onwards.uri_mut() = uri;
    *onwards.headers_mut() = parts.headers;
    let mut answer = sender.send_request(onwards).await.map_err(|e| e.to_string())?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let near = near.ok_or("the client's connection cannot be upgraded")?;
        let far = hyper::upgrade::on(&mut answer);
        tokio::spawn(join(near, far, api.stopping.clone()));
        return Ok(answer.map(|_| Body::empty()));
    }
    strip(answer.headers_mut());
    Ok(answer.map(Body::new))
}

fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    if names(headers, "connection", "upgrade") { headers.get(header::UPGRADE).cloned() } else { None }
}

fn restore(headers: &mut HeaderMap, protocol: Option<HeaderValue>) {
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|v| v.trim().parse().ok())
        .collect();
    for name in HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

async fn join(near: OnUpgrade, far: OnUpgrade, stop: CancellationToken) {
    let (Ok(near), Ok(far)) = tokio::join!(near, far) else { return };
    let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        () = stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_redirects() {
        let base = "/api/v1/namespaces/default/services/web:80/proxy";
        assert_eq!(split(base), (base, None));
        assert_eq!(split(&format!("{base}/")), (base, Some("/")));
        assert_eq!(split(&format!("{base}/a%2Fb//c/")), (base, Some("/a%2Fb//c/")));
        let moved = |location| moved(location, base, "10.0.0.1:80");
        assert_eq!(moved("/login"), Some(format!("{base}/login")));
        assert_eq!(moved("http://10.0.0.1:80/x"), Some(format!("{base}/x")));
        assert_eq!(moved("http://10.0.0.1:80"), Some(format!("{base}/")));
        assert_eq!(moved("https://example.com/x"), None);
        assert_eq!(moved("//example.com/x"), None);
        assert_eq!(moved("relative"), None);
    }

    #[test]
    fn headers_of_the_connection_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("connection", "keep-alive, X-Own"), ("x-own", "1"), ("te", "trailers"), ("x-other", "2")]
        {
            headers.append(name, HeaderValue::from_static(value));
        }
        assert_eq!(upgrade_of(&headers), None);
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
    }
}
