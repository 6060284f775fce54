//! Tables in memory that take the same transactions as the kernel and refuse what it would refuse. A fake of state:
//! tests ask what the tables hold, never which calls were made.

use std::{collections::BTreeMap, io, sync::Arc};

use crate::nft::{Element, Error, Family, Op, Rule, Set, Table, Tables, Transaction, Value, Verdict};

/// All tables of one imaginary network namespace.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    pub tables: BTreeMap<(Family, Arc<str>), Table>,
    generation: u32,
}

fn refused(what: String, errno: i32) -> Error {
    Error::Refused { what, error: io::Error::from_raw_os_error(errno), detail: String::new() }
}

impl Fake {
    fn apply(&mut self, family: Family, name: &Arc<str>, op: &Op) -> Result<(), Error> {
        let id = (family, name.clone());
        if *op == Op::AddTable {
            self.tables.entry(id).or_default();
            return Ok(());
        }
        if *op == Op::DeleteTable {
            return self.tables.remove(&id).map(|_| ()).ok_or_else(|| refused(format!("table {name}"), libc::ENOENT));
        }
        let table = self.tables.get_mut(&id).ok_or_else(|| refused(format!("table {name}"), libc::ENOENT))?;
        match op {
            Op::AddTable | Op::DeleteTable => {}
            Op::AddSet(set, def) => {
                let known = table.sets.entry(set.clone()).or_insert_with(|| Set { def: def.clone(), elements: vec![] });
                if known.def != *def {
                    return Err(refused(format!("set {set}"), libc::EEXIST));
                }
            }
            Op::DeleteSet(set) => {
                table.sets.remove(set).ok_or_else(|| refused(format!("set {set}"), libc::ENOENT))?;
            }
            Op::AddChain(chain, base) => {
                table.chains.entry(chain.clone()).or_default().base = *base;
            }
            Op::DeleteChain(chain) => {
                let known =
                    table.chains.remove(chain).ok_or_else(|| refused(format!("chain {chain}"), libc::ENOENT))?;
                if !known.rules.is_empty() || table.targets().any(|t| t == chain) {
                    return Err(refused(format!("chain {chain}"), libc::EBUSY));
                }
            }
            Op::AddRule(chain, rule) => {
                let known = table.chains.get_mut(chain);
                known.ok_or_else(|| refused(format!("chain {chain}"), libc::ENOENT))?.rules.push(rule.clone());
            }
            Op::FlushChain(chain) => {
                let known = table.chains.get_mut(chain);
                known.ok_or_else(|| refused(format!("chain {chain}"), libc::ENOENT))?.rules.clear();
            }
            Op::AddElements(set, elements) => {
                let known = table.sets.get_mut(set).ok_or_else(|| refused(format!("set {set}"), libc::ENOENT))?;
                for e in elements {
                    if e.key.len() != known.def.key.len as usize {
                        return Err(refused(format!("an element of {set}"), libc::EINVAL));
                    }
                    match known.find(e) {
                        Some(i) if known.elements[i].value == e.value => {}
                        Some(_) => return Err(refused(format!("an element of {set}"), libc::EEXIST)),
                        None => known.elements.push(e.clone()),
                    }
                }
            }
            Op::DeleteElements(set, elements) => {
                let known = table.sets.get_mut(set).ok_or_else(|| refused(format!("set {set}"), libc::ENOENT))?;
                for e in elements {
                    let at = known.find(e).ok_or_else(|| refused(format!("an element of {set}"), libc::ENOENT))?;
                    known.elements.swap_remove(at);
                }
            }
        }
        Ok(())
    }
}

impl Set {
    fn find(&self, e: &Element) -> Option<usize> {
        self.elements.iter().position(|k| k.key == e.key && k.key_end == e.key_end && k.interval_end == e.interval_end)
    }
}

impl Table {
    /// Chains that some rule or element of this table goes to.
    fn targets(&self) -> impl Iterator<Item = &Arc<str>> {
        fn target(v: &Verdict) -> Option<&Arc<str>> {
            match v {
                Verdict::Jump(to) | Verdict::Goto(to) => Some(to),
                _ => None,
            }
        }
        fn of_rule(r: &Rule) -> impl Iterator<Item = &Arc<str>> {
            r.exprs.iter().filter_map(|x| if let crate::nft::Expr::Verdict(v) = x { target(v) } else { None })
        }
        let rules = self.chains.values().flat_map(|c| c.rules.iter().flat_map(of_rule));
        let elements = self.sets.values().flat_map(|s| {
            s.elements.iter().filter_map(|e| if let Value::Verdict(v) = &e.value { target(v) } else { None })
        });
        rules.chain(elements)
    }
}

impl Tables for Fake {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), Error> {
        if transaction.is_empty() {
            return Ok(());
        }
        let mut next = self.clone();
        for (family, table, op) in &transaction.ops {
            next.apply(*family, table, op)?;
        }
        next.generation += 1;
        *self = next;
        Ok(())
    }

    fn read(&mut self, family: Family, table: &str) -> Result<Option<Table>, Error> {
        Ok(self.tables.get(&(family, Arc::from(table))).cloned())
    }

    fn generation(&mut self) -> Result<u32, Error> {
        Ok(self.generation)
    }
}
