//! Who may do what, and what hostile requests get.

use std::sync::Arc;

use super::*;
use crate::auth::{AUTHENTICATED, User};

async fn code(router: &Router, request: Request<Body>) -> (u16, Value) {
    let response = router.clone().oneshot(request).await.expect("infallible");
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("body").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).expect("request")
}

#[tokio::test]
async fn strangers_see_health_and_version_only() {
    let lab = Lab::new().await;
    let router = lab.server.router();
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping", "/version"] {
        assert_eq!(code(&router, get(path)).await.0, 200, "{path}");
    }
    for path in ["/api", "/apis", "/api/v1/namespaces", "/openapi/v3", "/", "/nowhere"] {
        let (code, body) = code(&router, get(path)).await;
        assert_eq!(
            (code, &body["reason"], &body["message"]),
            (401, &json!("Unauthorized"), &json!("Unauthorized")),
            "{path}"
        );
    }
    let token = std::fs::read_to_string(lab.dir.path().join("token")).expect("token");
    let with = |token: &str| {
        Request::get("/api/v1/namespaces")
            .header("authorization", format!("Bearer {token}"))
            .body(Body::empty())
            .expect("request")
    };
    assert_eq!(code(&router, with(&token)).await.0, 200);
    assert_eq!(code(&router, with("wrong")).await.0, 401);
}

#[tokio::test]
async fn the_known_but_unprivileged_are_forbidden() {
    let lab = Lab::new().await;
    let bob = User::new("bob", &[AUTHENTICATED]);
    let router = lab.server.routes().layer(axum::Extension(bob));
    assert_eq!(code(&router, get("/api/v1")).await.0, 200);
    let (refused, body) = code(&router, get(&format!("{SERVICES}/kubernetes"))).await;
    assert_eq!(refused, 403);
    assert_eq!(
        body["message"],
        "services \"kubernetes\" is forbidden: User \"bob\" cannot get resource \"services\" in API group \"\" in the \
         namespace \"default\""
    );
    let review = |verb: &str| {
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": verb, "resource": "services", "namespace": "default"}}});
        Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
            .body(Body::from(body.to_string()))
            .expect("request")
    };
    let (made, body) = code(&router, review("get")).await;
    assert_eq!((made, &body["status"]["allowed"]), (201, &json!(false)));
    let trusted = lab.server.trusted("admin");
    let (made, body) = code(&trusted, review("get")).await;
    assert_eq!((made, &body["status"]["allowed"]), (201, &json!(true)));
}

#[tokio::test]
async fn whoami_and_tokens() {
    let lab = Lab::new().await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let me = lab.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review).await.expect(201);
    assert_eq!(me["status"]["userInfo"]["username"], "test");
    let token = std::fs::read_to_string(lab.dir.path().join("token")).expect("token");
    for (token, good) in [(token.as_str(), true), ("bad", false)] {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let answer = lab.post("/apis/authentication.k8s.io/v1/tokenreviews", review).await.expect(201);
        assert_eq!(answer["status"]["authenticated"].as_bool().unwrap_or(false), good);
    }
}

#[tokio::test]
async fn hostile_requests_are_refused_without_5xx() {
    let lab = Lab::new().await;
    let mut codes = Vec::new();
    for path in [
        "/api/v1/namespaces/default/services/..%2f..%2fetc",
        "/api/v1/namespaces/default/services/%00",
        "/api/v1/namespaces/default/services?labelSelector=%zz",
        "/api/v1/namespaces/default/services?labelSelector=((((",
        "/api/v1/namespaces/default/services?limit=99999999999999999999",
        "/api/v1/namespaces/default/services?limit=-1",
        "/api/v1/namespaces/default/services?continue=%7B%7D",
        "/api/v1/services?watch=1&resourceVersion=-1",
        "/apis//v1/services",
        "/api//services",
        "//api/v1/services",
        "/api/v1/namespaces/default/services/kubernetes/status/extra",
        "/api/v1/namespaces/default/pods/x/exec",
        "/api/v1/namespaces//services",
    ] {
        let answer = lab.get(path).await;
        assert!(answer.code < 500, "{path}: {} {}", answer.code, answer.body);
        codes.push(answer.code);
    }
    for body in
        ["", "{", "[]", "null", "\"x\"", "{\"metadata\": 5}", "{\"metadata\": {\"name\": {}}}", "\u{0}", "a: [b"]
    {
        let request =
            Request::post(MAPS).header("content-type", "application/json").body(Body::from(body)).expect("request");
        let answer = lab.send(request).await;
        assert!((400..500).contains(&answer.code), "{body:?}: {} {}", answer.code, answer.body);
    }
    let nested = "[".repeat(100_000);
    let answer = lab.send(Request::post(MAPS).body(Body::from(nested)).expect("request")).await;
    assert_eq!(answer.code, 400);
    let large = format!("{{\"data\": \"{}\"}}", "x".repeat(4 << 20));
    let answer = lab.send(Request::post(MAPS).body(Body::from(large)).expect("request")).await;
    assert_eq!((answer.code, answer.message()), (413, "Request entity too large: limit is 3145728"));
}

/// Answers `/containerLogs/...` as an agent would.
async fn logging_lab() -> Lab {
    let node = Router::new().route(
        "/containerLogs/{namespace}/{pod}/{container}",
        axum::routing::get(|uri: http::Uri| async move {
            if uri.path().contains("/broken/") {
                return (
                    StatusCode::BAD_REQUEST,
                    "container \"c\" in pod \"broken\" is waiting to start: ContainerCreating".to_owned(),
                );
            }
            (StatusCode::OK, format!("{uri}\n"))
        }),
    );
    let dir = tempfile::tempdir().expect("dir");
    let mut config = Config::new(dir.path());
    config.nodes = Arc::new(crate::LocalNode(node));
    Lab::with(config, dir).await
}

#[tokio::test]
async fn logs_come_from_the_pods_node() {
    let lab = logging_lab().await;
    for name in ["web", "broken"] {
        let mut pod = pod(name);
        pod["spec"]["nodeName"] = "n1".into();
        lab.post(PODS, pod).await.expect(201);
    }
    let log = lab.get(&format!("{PODS}/web/log?tailLines=5&follow=true&timestamps=false")).await.expect(200);
    assert_eq!(log, "/containerLogs/default/web/c?tailLines=5&follow=true\n");
    let waiting = lab.get(&format!("{PODS}/broken/log")).await;
    assert_eq!((waiting.code, &waiting.body["reason"]), (400, &json!("BadRequest")));
    assert!(waiting.message().ends_with("is waiting to start: ContainerCreating"));
    let wrong = lab.get(&format!("{PODS}/web/log?container=x")).await;
    assert_eq!((wrong.code, wrong.message()), (400, "container x is not valid for pod web"));
    assert_eq!(lab.get(&format!("{PODS}/none/log")).await.code, 404);
    lab.post(PODS, pod("pending")).await.expect(201);
    assert_eq!(lab.get(&format!("{PODS}/pending/log")).await.code, 200);
}

/// GET over a TLS connection of its own; the first line of the answer.
async fn over_tls(address: std::net::SocketAddr, tls: rustls::ClientConfig, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    let name = "localhost".try_into().expect("name");
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.expect("handshake");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).lines().next().unwrap_or("").to_owned()
}

#[tokio::test]
async fn over_tls_a_certificate_is_an_identity() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let lab = Lab::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    let stop = tokio_util::sync::CancellationToken::new();
    let config = std::fs::read_to_string(lab.server.kubeconfig()).expect("kubeconfig");
    let kubeconfig: Value = serde_yaml_ng::from_str(&config).expect("yaml");
    let decode = |v: &Value| STANDARD.decode(v.as_str().expect("base64")).expect("base64");
    let user = &kubeconfig["users"][0]["user"];
    let mut roots = rustls::RootCertStore::empty();
    let ca = decode(&kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"]);
    roots.add(CertificateDer::from_pem_slice(&ca).expect("ca")).expect("root");
    let builder = || {
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots.clone())
    };
    let certificate = CertificateDer::from_pem_slice(&decode(&user["client-certificate-data"])).expect("certificate");
    let key = PrivateKeyDer::from_pem_slice(&decode(&user["client-key-data"])).expect("key");
    let known = builder().with_client_auth_cert(vec![certificate], key).expect("client");
    let stranger = builder().with_no_client_auth();

    let client = async {
        assert_eq!(over_tls(address, known, "/api/v1/namespaces").await, "HTTP/1.1 200 OK");
        assert_eq!(over_tls(address, stranger.clone(), "/api/v1/namespaces").await, "HTTP/1.1 401 Unauthorized");
        assert_eq!(over_tls(address, stranger, "/healthz").await, "HTTP/1.1 200 OK");
        stop.cancel();
    };
    tokio::join!(lab.server.serve(listener, stop.clone()), client);
}
