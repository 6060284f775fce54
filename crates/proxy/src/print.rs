//! [`Desired`] for people and golden files: one line a frontend, in order, with endpoints sorted. Which slot or number
//! an endpoint has is left out, because it means nothing.

use std::fmt;

use model::route::Frontend;

use crate::desired::{Desired, List};

impl fmt::Display for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (frontend, entry) in self.services.iter() {
            write!(f, "{frontend} {} ({})", entry.class, entry.label)?;
            self.list(f, frontend, List::Inside, " ->")?;
            if entry.class.behaviour.outside.is_some() {
                self.list(f, frontend, List::Outside, " outside ->")?;
            }
            let ranges: Vec<String> =
                self.ranges.keys().filter(|(of, _)| of == frontend).map(|(_, net)| net.to_string()).collect();
            if !ranges.is_empty() {
                write!(f, " from {}", ranges.join(" "))?;
            }
            writeln!(f)?;
        }
        for (frontend, refusal) in self.refused.iter() {
            writeln!(f, "{frontend} {}", format!("{refusal:?}").to_lowercase())?;
        }
        for (title, ips) in [("hairpin", &self.hairpin), ("elsewhere", &self.elsewhere)] {
            if !ips.is_empty() {
                let ips: Vec<String> = ips.keys().map(ToString::to_string).collect();
                writeln!(f, "{title} {}", ips.join(" "))?;
            }
        }
        Ok(())
    }
}

impl Desired {
    fn list(&self, f: &mut fmt::Formatter<'_>, frontend: &Frontend, list: List, title: &str) -> fmt::Result {
        f.write_str(title)?;
        let mut backends: Vec<_> = self.slots(frontend).filter(|(s, _)| s.list() == list).map(|(_, b)| b).collect();
        backends.sort();
        if backends.is_empty() {
            f.write_str(" drop")?;
        }
        for b in backends {
            write!(f, " {}", std::net::SocketAddr::new(b.ip, b.port))?;
        }
        Ok(())
    }
}
