//! Stock kubectl: the one on PATH and Debian's old one, talking to the cluster of a lab.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::Result;

use crate::{Lab, Place, debian};

/// What a program said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// What was run, for messages.
    pub command: String,
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub(crate) fn of(command: &mut Command, shown: &str) -> Output {
        match command.output() {
            Ok(output) => Output {
                command: shown.to_owned(),
                code: output.status.code().unwrap_or(-1),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
            Err(e) => Output { command: shown.to_owned(), code: -1, stdout: String::new(), stderr: e.to_string() },
        }
    }

    /// The standard output of a program that succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}\nstdout: {}\nstderr: {}", self.command, self.stdout, self.stderr);
        self.stdout
    }

    /// The standard error of a program that must refuse with exit code 1.
    ///
    /// # Panics
    /// When it ended otherwise.
    #[track_caller]
    pub fn refused(self) -> String {
        assert_eq!(
            self.code, 1,
            "{} should be refused\nstdout: {}\nstderr: {}",
            self.command, self.stdout, self.stderr
        );
        self.stderr
    }

    /// The standard output of a program that succeeded, or everything it said: for waiting.
    pub fn result(self) -> Result<String, String> {
        if self.code == 0 { Ok(self.stdout) } else { Err(format!("exit code {}: {}", self.code, self.stderr.trim())) }
    }
}

/// One kubectl program set up for the cluster of one lab.
#[derive(Debug, Clone)]
pub struct Kubectl {
    /// `new` or `old`: for names of objects of tests that run once with each.
    pub label: &'static str,
    program: PathBuf,
    place: Place,
    kubeconfig: PathBuf,
    home: PathBuf,
    namespace: Option<String>,
}

impl Kubectl {
    /// The kubectl on PATH, or Debian's where there is none.
    pub fn new(lab: &Lab) -> Result<Kubectl> {
        let program = match debian::find_on_path("kubectl") {
            Some(program) => program,
            None => old_program()?,
        };
        Kubectl::with(lab, "new", program)
    }

    /// Debian's kubectl 1.20.
    pub fn old(lab: &Lab) -> Result<Kubectl> {
        Kubectl::with(lab, "old", old_program()?)
    }

    fn with(lab: &Lab, label: &'static str, program: PathBuf) -> Result<Kubectl> {
        // A home of its own: kubectl caches discovery and OpenAPI by server address, which is the same in every lab.
        let home = lab.dir().join(format!("home-{label}"));
        std::fs::create_dir_all(&home)?;
        let kubeconfig = lab.dir().join("lib/portolan/kubeconfig");
        Ok(Kubectl { label, program, place: lab.node(), kubeconfig, home, namespace: None })
    }

    /// The same, speaking of another namespace than `default`.
    pub fn within(&self, namespace: &str) -> Kubectl {
        Kubectl { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// With another kubeconfig file (as the host names it).
    pub fn configured_by(&self, kubeconfig: PathBuf) -> Kubectl {
        Kubectl { kubeconfig, ..self.clone() }
    }

    /// `kubectl` with these arguments, split at white space; not started yet.
    pub fn command(&self, line: &str) -> Command {
        self.command_of(&line.split_whitespace().collect::<Vec<_>>())
    }

    fn command_of(&self, arguments: &[&str]) -> Command {
        let mut command = self.place.network_command(&self.program);
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home).env("LC_ALL", "C.UTF-8");
        if let Some(namespace) = &self.namespace {
            command.arg(format!("--namespace={namespace}"));
        }
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `kubectl LINE` to its end.
    pub fn run(&self, line: &str) -> Output {
        Output::of(&mut self.command(line), &format!("kubectl({}) {line}", self.label))
    }

    /// Runs kubectl with arguments that hold white space.
    pub fn run_with(&self, arguments: &[&str]) -> Output {
        Output::of(&mut self.command_of(arguments), &format!("kubectl({}) {}", self.label, arguments.join(" ")))
    }

    /// Runs `kubectl LINE` with `input` on standard input.
    pub fn feed(&self, line: &str, input: &str) -> Output {
        let shown = format!("kubectl({}) {line} <<EOF\n{input}\nEOF", self.label);
        let mut command = self.command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let fed = command.spawn().and_then(|mut child| {
            if let Some(mut pipe) = child.stdin.take() {
                // A program that refuses early closes its end; what it said matters more.
                let _ = pipe.write_all(input.as_bytes());
            }
            child.wait_with_output()
        });
        match fed {
            Ok(output) => Output {
                command: shown,
                code: output.status.code().unwrap_or(-1),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
            Err(e) => Output { command: shown, code: -1, stdout: String::new(), stderr: e.to_string() },
        }
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, yaml: &str) -> Output {
        self.feed("apply -f -", yaml)
    }

    /// `kubectl get LINE -o jsonpath=PATH`.
    pub fn jsonpath(&self, line: &str, path: &str) -> Output {
        let output = format!("jsonpath={path}");
        let mut arguments = vec!["get"];
        arguments.extend(line.split_whitespace());
        arguments.extend(["-o", &output]);
        self.run_with(&arguments)
    }

    /// Starts `kubectl LINE` with its output piped, to be read while it runs.
    pub fn stream(&self, line: &str) -> Result<Child> {
        Ok(self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }
}

/// Debian's kubectl 1.20, fetched when the cache has none.
pub fn old_program() -> Result<PathBuf> {
    debian::program("kubernetes-client", "usr/bin/kubectl")
}
