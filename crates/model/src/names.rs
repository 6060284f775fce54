//! What the cluster's DNS says: the records that Services, EndpointSlices and Pods imply (Kubernetes DNS schema 1.1.0,
//! <https://github.com/kubernetes/dns/blob/master/docs/specification.md>), and the reason for every "no".
//!
//! [`Directory`] is the zone as a value, made from one snapshot or, cheaper, from the one before it. It refuses to know
//! packets, TTL bookkeeping, rotation and upstream servers.
//!
//! Beyond the schema, as users of CoreDNS expect: endpoints of Services with a ClusterIP have names too, and `SRV`
//! at a Service's own name lists all its ports, unnamed ones included. Reverse names are as in the schema: ClusterIPs
//! and endpoints of headless Services, and endpoints with a hostname somebody chose.

mod directory;
mod name;
mod reason;
mod reverse;
mod service;
mod table;
mod transfer;

use std::{borrow::Cow, fmt, net::IpAddr, net::Ipv4Addr, net::Ipv6Addr};

use ipnet::IpNet;
use smallvec::SmallVec;

use crate::ObjectKey;

pub use directory::Directory;
pub use name::{MAX_LABEL, MAX_WIRE, Name, NameError};
pub use reason::Reason;
pub use reverse::reverse_name;
pub use service::{ServiceNames, SrvEntry};
pub use transfer::{ZoneData, ZoneRecord};

/// The value of the `dns-version` TXT record.
pub const SCHEMA_VERSION: &str = "1.1.0";

/// A record type by number (RFC 1035 §3.2.2 and its successors).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(pub u16);

impl RecordType {
    pub const A: Self = Self(1);
    pub const NS: Self = Self(2);
    pub const CNAME: Self = Self(5);
    pub const SOA: Self = Self(6);
    pub const PTR: Self = Self(12);
    pub const TXT: Self = Self(16);
    pub const AAAA: Self = Self(28);
    pub const SRV: Self = Self(33);
    pub const OPT: Self = Self(41);
    pub const IXFR: Self = Self(251);
    pub const AXFR: Self = Self(252);
    pub const ANY: Self = Self(255);

    /// Asked for, directly or by `ANY`.
    fn wants(self, t: Self) -> bool {
        self == t || self == Self::ANY
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::A => "A",
            Self::NS => "NS",
            Self::CNAME => "CNAME",
            Self::SOA => "SOA",
            Self::PTR => "PTR",
            Self(15) => "MX",
            Self::TXT => "TXT",
            Self::AAAA => "AAAA",
            Self::SRV => "SRV",
            Self(35) => "NAPTR",
            Self(43) => "DS",
            Self(48) => "DNSKEY",
            Self(64) => "SVCB",
            Self(65) => "HTTPS",
            Self::IXFR => "IXFR",
            Self::AXFR => "AXFR",
            Self::ANY => "ANY",
            Self(other) => return write!(f, "TYPE{other}"),
        })
    }
}

impl fmt::Debug for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which names `a-b-c-d.NAMESPACE.pod` exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PodNames {
    /// None.
    Disabled,
    /// Every address, in every namespace that exists, pod or no pod: what the schema's deprecated rule asks for and
    /// kubeadm configures. Anybody can then make a name in the zone point anywhere.
    Insecure,
    /// Addresses of pods of that namespace that have not ended. The default, because the snapshot has the pods anyway.
    #[default]
    Verified,
}

/// What the zone is called and how its records are made.
#[derive(Clone, Debug)]
pub struct Zone {
    /// `cluster.local`
    pub name: Name,
    /// Seconds, on every record.
    pub ttl: u32,
    /// Seconds that a resolver may remember a "no": the SOA's minimum (RFC 2308).
    pub negative_ttl: u32,
    pub pods: PodNames,
    /// The Service whose ClusterIPs are the addresses of `ns.dns.ZONE`.
    pub server: ObjectKey,
    /// Addresses whose reverse names belong to us: Service and Pod ranges. Unknown ones do not exist.
    pub reverse: Vec<IpNet>,
}

impl Zone {
    /// TTL 30 and negative TTL 5, as served by default.
    pub fn new(name: &str) -> Result<Self, NameError> {
        Ok(Self {
            name: name.parse()?,
            ttl: 30,
            negative_ttl: 5,
            pods: PodNames::default(),
            server: ObjectKey::new("kube-system", "kube-dns"),
            reverse: Vec::new(),
        })
    }
}

/// A name as it stands in a record: a Service's own name, or one label below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    pub label: Option<&'a str>,
    /// The Service's name in wire form, zone and root included.
    pub base: &'a [u8],
}

/// The records of one type at one name.
#[derive(Clone, Debug, PartialEq)]
pub enum Records<'a> {
    A(&'a [Ipv4Addr]),
    Aaaa(&'a [Ipv6Addr]),
    /// A pod's, computed from its name.
    Address(IpAddr),
    Srv {
        service: &'a ServiceNames,
        set: Cow<'a, [SrvEntry]>,
    },
    Ptr(SmallVec<[Target<'a>; 2]>),
    Txt(&'static str),
    /// One: `ns.dns.ZONE`.
    Ns,
    Soa,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Found<'a> {
    /// Neither in the zone nor in a reverse range: somebody else knows.
    Elsewhere,
    Records(Records<'a>),
    /// An ExternalName Service: `CNAME`, whatever type was asked for.
    Alias(&'a Name),
    /// The name exists, without records of that type.
    NoData(Reason<'a>),
    /// The name does not exist: NXDOMAIN.
    NoName(Reason<'a>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer<'a> {
    pub found: Found<'a>,
    /// Labels of the zone apex that answers, counted from the root: the owner of the SOA in a negative answer.
    pub apex_labels: usize,
}
