//! Why a name has no answer, in words for the person who asked. A reason is a few pointers; the text is made only when
//! somebody wants to read it.

use std::{fmt::Write, net::IpAddr};

use super::{Directory, RecordType, ServiceNames, name::display_label};
use crate::object::{Addressing, IpFamily};

#[derive(Clone, Debug, PartialEq)]
pub enum Reason<'a> {
    /// Not of a form that the schema gives a meaning to.
    Form,
    /// The name exists only because longer ones do.
    NonTerminal,
    NoType(RecordType),
    NoNamespace(&'a [u8]),
    NoService {
        namespace: &'a [u8],
        service: &'a [u8],
    },
    NoReadyEndpoints(&'a ServiceNames),
    NoEndpoint {
        service: &'a ServiceNames,
        label: &'a [u8],
    },
    NoPort {
        service: &'a ServiceNames,
        port: &'a [u8],
        protocol: &'a [u8],
    },
    NoFamily(&'a ServiceNames, IpFamily),
    BadAlias(&'a ServiceNames),
    BelowAlias(&'a ServiceNames),
    PodsDisabled,
    PodForm,
    NoPod {
        namespace: &'a [u8],
        ip: IpAddr,
    },
    NoPodFamily(IpFamily),
    NoAddress(IpAddr),
}

fn text(label: &[u8]) -> String {
    let mut out = String::with_capacity(label.len());
    // A String takes everything.
    let _ = display_label(label, &mut out);
    out
}

impl Directory {
    /// One sentence: what is missing, and where to look.
    pub fn explain(&self, reason: &Reason<'_>) -> String {
        let zone = self.zone().name.to_string();
        let zone = zone.trim_end_matches('.');
        match reason {
            Reason::Form => format!(
                "names in {zone} are SERVICE.NAMESPACE.svc.{zone}, names below it, or A-B-C-D.NAMESPACE.pod.{zone}"
            ),
            Reason::NonTerminal => "there are only longer names below this one".into(),
            Reason::NoType(t) => format!("the name exists and has no {t} record"),
            Reason::NoNamespace(ns) => format!("namespace {} does not exist", text(ns)),
            Reason::NoService { namespace, .. } if !self.has_namespace(namespace) => {
                self.explain(&Reason::NoNamespace(namespace))
            }
            Reason::NoService { namespace, service } => {
                format!("namespace {} has no Service {}", text(namespace), text(service))
            }
            Reason::NoReadyEndpoints(s) => self.nobody_ready(s),
            Reason::NoEndpoint { service, label } => {
                format!("Service {} has no ready endpoint with the name {}", service.service().meta.key, text(label))
            }
            Reason::NoPort { service, port, protocol } => {
                let ports = &service.service().ports;
                let mut known = String::new();
                for p in ports.iter().filter(|p| !p.name.is_empty()) {
                    let comma = if known.is_empty() { "" } else { ", " };
                    let _ = write!(known, "{comma}_{}._{}", p.name, p.protocol.as_str().to_ascii_lowercase());
                }
                if known.is_empty() {
                    known.push_str("none, and only named ports have such records");
                }
                let dot = if port.is_empty() { "" } else { "." };
                let asked = format!("{}{dot}{}", text(port), text(protocol));
                format!("Service {} has no port {asked}; it has: {known}", service.service().meta.key)
            }
            Reason::NoFamily(s, family) => {
                let what = if s.service().headless() { "no ready endpoint with an" } else { "no" };
                format!("Service {} has {what} {} address", s.service().meta.key, family.as_str())
            }
            Reason::BadAlias(s) => {
                let Addressing::ExternalName(target) = &s.service().addressing else { return String::new() };
                format!("Service {}: externalName {target} is not a domain name", s.service().meta.key)
            }
            Reason::BelowAlias(s) => {
                format!("Service {} is of type ExternalName: there is nothing below it", s.service().meta.key)
            }
            Reason::PodsDisabled => "pod names are switched off".into(),
            Reason::PodForm => "a pod's name is its address with dashes, as in 10-244-0-7".into(),
            Reason::NoPod { namespace, .. } if !self.has_namespace(namespace) => {
                self.explain(&Reason::NoNamespace(namespace))
            }
            Reason::NoPod { namespace, ip } => format!("namespace {} has no pod with address {ip}", text(namespace)),
            Reason::NoPodFamily(family) => format!("the address in this name is {}", family.as_str()),
            Reason::NoAddress(ip) => format!("{ip} is neither a ClusterIP nor an endpoint of a headless Service"),
        }
    }

    fn nobody_ready(&self, names: &ServiceNames) -> String {
        let service = names.service();
        let key = &service.meta.key;
        let slices = self.snapshot().slices_of(key);
        let all = || slices.iter().flat_map(|s| &s.endpoints);
        if all().next().is_none() {
            let cause = match &service.selector {
                Some(_) => "no pod with an address matches its selector",
                None => "it has no selector and no EndpointSlice names any",
            };
            return format!("headless Service {key} has no endpoints: {cause}");
        }
        let mut out = format!("headless Service {key} has no ready endpoints, {} not ready", all().count());
        let pod = all().filter(|e| !e.ready).find_map(|e| self.snapshot().pods.get(e.pod.as_ref()?));
        if let Some(pod) = pod {
            let why = if pod.reason.is_empty() { "not Ready" } else { &pod.reason };
            let _ = write!(out, ": pod {}: {why}", pod.meta.key.name);
        }
        out
    }
}
