//! What the tests of the whole program share: one running cluster for each test program, and ways to wait for what the
//! program promises.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use serde_json::Value;
use testkit::{Kubectl, Lab, Place, Registry, Up, Upstream, until};

/// Long enough for an image to be pulled and unpacked while two processors compile something else.
pub const LONG: Duration = Duration::from_secs(120);

/// For what should take a moment.
pub const SOON: Duration = Duration::from_secs(20);

/// One cluster with a filled registry, shared by the tests of one test program. Each test has a namespace of its own.
pub struct World {
    pub lab: Lab,
    pub registry: Registry,
    pub upstream: Upstream,
    pub up: Mutex<Option<Up>>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| World::start(&[]));

/// The shared one. It ends with the process.
pub fn world() -> &'static World {
    &WORLD
}

impl World {
    /// A new one.
    ///
    /// # Panics
    /// With what went wrong, when it cannot be made.
    pub fn start(arguments: &[&str]) -> World {
        let lab = Lab::new("test").unwrap_or_else(|e| panic!("{e:#}"));
        let registry = Registry::start(&lab).unwrap_or_else(|e| panic!("{e:#}"));
        let upstream = Upstream::start(&lab).unwrap_or_else(|e| panic!("{e:#}"));
        let up = Up::start(&lab, arguments).unwrap_or_else(|e| panic!("{e:#}"));
        let world = World { lab, registry, upstream, up: Mutex::new(Some(up)) };
        until(SOON, "the cluster's DNS", || match world.dig("+short kubernetes.default.svc.cluster.local") {
            said if said.contains("10.96.0.1") || !arguments.is_empty() => Ok(()),
            said => Err(said),
        });
        world
    }

    /// The kubectl of today in a new namespace.
    pub fn namespace(&self, name: &str) -> Kubectl {
        let kubectl = self.kubectl();
        kubectl.run(&format!("create namespace {name}")).ok();
        kubectl.within(name)
    }

    /// Both kubectls, each in a new namespace of its own.
    pub fn namespaces(&self, name: &str) -> [Kubectl; 2] {
        [self.kubectl(), self.old_kubectl()].map(|kubectl| {
            let name = format!("{name}-{}", kubectl.label);
            kubectl.run(&format!("create namespace {name}")).ok();
            kubectl.within(&name)
        })
    }

    /// The kubectl of today, in `default`.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(&self.lab).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Debian's kubectl 1.20, in `default`.
    pub fn old_kubectl(&self) -> Kubectl {
        Kubectl::old(&self.lab).unwrap_or_else(|e| panic!("{e:#}"))
    }

    pub fn node(&self) -> Place {
        self.lab.node()
    }

    pub fn outside(&self) -> Place {
        self.lab.outside()
    }

    /// The inside of a running pod.
    ///
    /// # Panics
    /// When no container of it runs.
    #[track_caller]
    pub fn pod(&self, name: &str) -> Place {
        self.lab.pod(name).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// What the program has said so far: for messages.
    pub fn log(&self) -> String {
        let up = self.up.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        up.as_ref().map_or_else(String::new, Up::log)
    }

    /// Starts a pod with networking tools that runs until it is deleted, and gives its inside.
    pub fn toolbox(&self, kubectl: &Kubectl, name: &str) -> Place {
        kubectl.apply(&pod(name, "nicolaka/netshoot", r#"["sleep", "86400"]"#)).ok();
        self.ready_pods(kubectl, &format!("app={name}"), 1);
        self.pod(name)
    }

    /// Waits until exactly `count` pods match the selector and all are ready; their names, sorted.
    #[track_caller]
    pub fn ready_pods(&self, kubectl: &Kubectl, selector: &str, count: usize) -> Vec<String> {
        until(LONG, &format!("{count} ready pods with {selector}"), || {
            let list = json(&kubectl.run(&format!("get pods -l {selector} -o json")).result()?)?;
            let items = list["items"].as_array().cloned().unwrap_or_default();
            let mut names: Vec<String> = Vec::new();
            for pod in &items {
                let ready = pod["status"]["conditions"]
                    .as_array()
                    .is_some_and(|conditions| conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
                if !ready || !pod["metadata"]["deletionTimestamp"].is_null() {
                    return Err(format!("{}: {}", pod["metadata"]["name"], pod["status"]));
                }
                names.push(text(&pod["metadata"]["name"]));
            }
            names.sort();
            if names.len() == count { Ok(names) } else { Err(format!("there are {names:?}")) }
        })
    }

    /// Waits until the Endpoints of a Service have exactly `count` ready addresses; these, sorted.
    #[track_caller]
    pub fn endpoints(&self, kubectl: &Kubectl, service: &str, count: usize) -> Vec<String> {
        until(LONG, &format!("{count} endpoints of {service}"), || {
            let object = json(&kubectl.run(&format!("get endpoints {service} -o json")).result()?)?;
            let subsets = object["subsets"].as_array().cloned().unwrap_or_default();
            let mut found: Vec<String> = Vec::new();
            for address in subsets.iter().flat_map(|s| s["addresses"].as_array().cloned().unwrap_or_default()) {
                found.push(text(&address["ip"]));
            }
            found.sort();
            found.dedup();
            if found.len() == count { Ok(found) } else { Err(format!("there are {found:?}")) }
        })
    }

    /// `dig` on the node at the cluster's DNS, with the given words.
    pub fn dig(&self, words: &str) -> String {
        let mut command = self.node().network_command("dig");
        command.args(["@10.96.0.10", "+tries=1", "+time=3"]).args(words.split_whitespace()).stdin(Stdio::null());
        match command.output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(e) => panic!("dig: {e}; cargo xtask prepare installs it"),
        }
    }
}

/// The ClusterIP of a Service.
#[track_caller]
pub fn cluster_ip(kubectl: &Kubectl, service: &str) -> String {
    kubectl.jsonpath(&format!("service {service}"), "{.spec.clusterIP}").ok()
}

/// Waits until `GET /path` through this address answers 200 from that place; the body.
#[track_caller]
pub fn answers(place: &Place, address: &str, path: &str) -> String {
    let address: SocketAddr = address.parse().unwrap_or_else(|e| panic!("{address}: {e}"));
    until(SOON, &format!("an answer from {address}"), || {
        let answer = place.get(address, path).map_err(|e| format!("{e:#}"))?;
        if answer.status == 200 { Ok(answer.text()) } else { Err(format!("HTTP {}", answer.status)) }
    })
}

/// Text as a JSON value.
pub fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|e| format!("{e}: {text}"))
}

/// A JSON string without its quotes; other values as they are printed.
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A pod of one container labelled `app: NAME`. It ends at once when told to.
pub fn pod(name: &str, image: &str, command: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels:\n    app: {name}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    image: {image}\n    command: {command}\n"
    )
}

/// A Deployment `NAME` of `replicas` pods labelled `app: NAME`, ready when `/` answers on `port`.
pub fn deployment(name: &str, image: &str, replicas: usize, port: u16) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {name}\nspec:\n  replicas: {replicas}\n  selector:\n    \
         matchLabels:\n      app: {name}\n  template:\n    metadata:\n      labels:\n        app: {name}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n      - name: main\n        image: {image}\n        \
         ports:\n        - containerPort: {port}\n        readinessProbe:\n          httpGet:\n            path: /\n            \
         port: {port}\n          periodSeconds: 1\n"
    )
}

/// The image that answers who it is, built into the program.
pub const ECHO: &str = "portolan.dev/echo";

/// A manifest of `examples/`, by its path there.
///
/// # Panics
/// When there is no such file.
pub fn example(path: &str) -> String {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(path);
    std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}
