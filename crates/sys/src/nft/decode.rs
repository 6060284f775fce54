//! Netlink dumps to tables as data. Total: what this program never writes becomes [`Expr::Foreign`] or a chain, set or
//! rule that differs from ours, never a panic.

use std::sync::Arc;

use super::{
    Base, Bytes, Chain, ChainType, Cmp, CtKey, Data, Element, Error, Expr, Family, Header, Hook, MetaKey, Reg, Reject,
    Rule, Set, SetDef, SetOp, SetType, Table, Value, Verdict,
    encode::{self, kind},
    set_flags,
};
use crate::netlink::{Attrs, Encoder, NLM_F_DUMP, NLM_F_REQUEST, Socket};

fn ask(message: u16, flags: u16, family: Family, table: &str, set: Option<&str>) -> Encoder {
    let mut e = Encoder::default();
    e.begin(kind(message), NLM_F_REQUEST | flags, family.number(), 0);
    e.text(1, table);
    if let Some(set) = set {
        e.text(2, set);
    }
    e.end();
    e
}

pub(super) fn generation(socket: &mut Socket) -> Result<u32, Error> {
    let mut e = Encoder::default();
    e.begin(kind(encode::GETGEN), NLM_F_REQUEST, 0, 0);
    e.end();
    let mut id = None;
    socket.request(&e, "to tell the generation", |_, attrs| {
        id = attrs.u32(1);
        Ok(())
    })?;
    id.ok_or(Error::Malformed("no generation id"))
}

pub(super) fn table(socket: &mut Socket, family: Family, name: &str) -> Result<Option<Table>, Error> {
    let before = generation(socket)?;
    match socket.request(&ask(encode::GETTABLE, 0, family, name, None), "to show the table", |_, _| Ok(())) {
        Err(e) if e.errno() == Some(libc::ENOENT) => return Ok(None),
        other => other?,
    }
    let mut table = Table::default();
    // The kernel filters by table where it can; older ones send everything, so the name is compared as well.
    socket.request(&ask(encode::GETCHAIN, NLM_F_DUMP, family, name, None), "to list chains", |k, a| {
        if k == kind(encode::NEWCHAIN) && a.text(1) == Some(name) {
            let chain = a.text(3).ok_or(Error::Malformed("chain without a name"))?;
            table.chains.insert(chain.into(), Chain { base: base(&a), rules: Vec::new() });
        }
        Ok(())
    })?;
    socket.request(&ask(encode::GETSET, NLM_F_DUMP, family, name, None), "to list sets", |k, a| {
        if k == kind(encode::NEWSET) && a.text(1) == Some(name) {
            let set = a.text(2).ok_or(Error::Malformed("set without a name"))?;
            table.sets.insert(set.into(), Set { def: set_def(&a), elements: Vec::new() });
        }
        Ok(())
    })?;
    socket.request(&ask(encode::GETRULE, NLM_F_DUMP, family, name, None), "to list rules", |k, a| {
        if k == kind(encode::NEWRULE)
            && a.text(1) == Some(name)
            && let Some(chain) = a.text(2).and_then(|c| table.chains.get_mut(c))
        {
            chain.rules.push(rule(&a));
        }
        Ok(())
    })?;
    // What the packet path writes is not part of the ruleset, and there may be a great deal of it.
    for (set_name, set) in table.sets.iter_mut().filter(|(_, s)| s.def.flags & set_flags::EVAL == 0) {
        let request = ask(encode::GETSETELEM, NLM_F_DUMP, family, name, Some(set_name));
        let verdicts = set.def.data == Some(Data::Verdict);
        socket.request(&request, "to list elements", |k, a| {
            if k == kind(encode::NEWSETELEM)
                && let Some(list) = a.nested(3)
            {
                set.elements.extend(list.filter_map(|(_, e)| element(&Attrs(e), verdicts)));
            }
            Ok(())
        })?;
    }
    if generation(socket)? != before {
        return Err(Error::Interrupted);
    }
    Ok(Some(table))
}

fn base(a: &Attrs<'_>) -> Option<Base> {
    let hook = a.nested(4)?;
    Some(Base {
        kind: if a.text(7) == Some("nat") { ChainType::Nat } else { ChainType::Filter },
        hook: match hook.u32(1)? {
            0 => Hook::Prerouting,
            1 => Hook::Input,
            2 => Hook::Forward,
            3 => Hook::Output,
            _ => Hook::Postrouting,
        },
        priority: hook.u32(2)? as i32,
    })
}

fn set_def(a: &Attrs<'_>) -> SetDef {
    let data = match a.u32(6) {
        None => None,
        Some(encode::DATA_VERDICT) => Some(Data::Verdict),
        Some(code) => Some(Data::Value(SetType { code, len: a.u32(7).unwrap_or(0) })),
    };
    let desc = a.nested(9);
    SetDef {
        key: SetType { code: a.u32(4).unwrap_or(0), len: a.u32(5).unwrap_or(0) },
        data,
        flags: a.u32(3).unwrap_or(0),
        size: desc.as_ref().and_then(|d| d.u32(1)).unwrap_or(0),
        fields: desc
            .and_then(|d| d.nested(2))
            .map(|fields| fields.filter_map(|(_, f)| Attrs(f).u32(1).map(|l| l as u8)).collect())
            .unwrap_or_default(),
        userdata: a.get(13).unwrap_or_default().to_vec(),
    }
}

fn element(a: &Attrs<'_>, verdicts: bool) -> Option<Element> {
    let value = match a.nested(2) {
        None => Value::Nothing,
        Some(data) if verdicts => Value::Verdict(verdict(&data)?),
        Some(data) => Value::Data(Bytes::from_slice(data.get(1)?)),
    };
    Some(Element {
        key: Bytes::from_slice(a.nested(1)?.get(1)?),
        key_end: a.nested(10).and_then(|e| e.get(1)).map(|e| Box::new(Bytes::from_slice(e))),
        interval_end: a.u32(3).unwrap_or(0) & encode::ELEM_INTERVAL_END != 0,
        value,
        comment: a.get(6).and_then(comment),
    })
}

fn comment(mut tlvs: &[u8]) -> Option<Arc<str>> {
    while let [kind, len, rest @ ..] = tlvs {
        let value = rest.get(..usize::from(*len))?;
        if *kind == encode::COMMENT {
            return std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok().map(Arc::from);
        }
        tlvs = &rest[usize::from(*len)..];
    }
    None
}

fn verdict(data: &Attrs<'_>) -> Option<Verdict> {
    let v = data.nested(2)?;
    let chain = || v.text(2).map(Arc::from);
    Some(match v.u32(1)? as i32 {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => return None,
    })
}

fn rule(a: &Attrs<'_>) -> Rule {
    let list = a.nested(4).unwrap_or(Attrs(&[]));
    Rule::new(list.map(|(_, x)| {
        let x = Attrs(x);
        let name = x.text(1).unwrap_or("?");
        expr(name, &x.nested(2).unwrap_or(Attrs(&[]))).unwrap_or_else(|| Expr::Foreign(name.into()))
    }))
}

/// The kernel names registers that are multiples of four by the old 128-bit names 1 to 4.
fn reg(a: &Attrs<'_>, kind: u16) -> Option<Reg> {
    match a.u32(kind)? {
        n @ 1..=4 => Some(Reg((n as u8 - 1) * 4)),
        n @ 8..=23 => Some(Reg(n as u8 - 8)),
        _ => None,
    }
}

fn value(a: &Attrs<'_>, kind: u16) -> Option<Vec<u8>> {
    a.nested(kind)?.get(1).map(<[u8]>::to_vec)
}

fn expr(name: &str, a: &Attrs<'_>) -> Option<Expr> {
    Some(match name {
        "payload" => Expr::Payload {
            to: reg(a, 1)?,
            header: match a.u32(2)? {
                1 => Header::Network,
                2 => Header::Transport,
                _ => return None,
            },
            offset: a.u32(3)?.try_into().ok()?,
            len: a.u32(4)?.try_into().ok()?,
        },
        "meta" => {
            let number = a.u32(2)?;
            let key = [MetaKey::Priority, MetaKey::Mark, MetaKey::L4Proto]
                .into_iter()
                .find(|k| encode::meta_number(*k) == number)?;
            match reg(a, 1) {
                Some(to) => Expr::Meta { key, to },
                None => Expr::SetMeta { key, from: reg(a, 3)? },
            }
        }
        "ct" => {
            let number = a.u32(2)?;
            let key = [CtKey::State, CtKey::Status].into_iter().find(|k| encode::ct_number(*k) == number)?;
            Expr::Ct { key, to: reg(a, 1)? }
        }
        "fib" if a.u32(2)? == encode::FIB_TYPE => Expr::FibType {
            source: match a.u32(3)? {
                encode::FIB_SADDR => true,
                encode::FIB_DADDR => false,
                _ => return None,
            },
            to: reg(a, 1)?,
        },
        "immediate" => match a.u32(1)? {
            0 => Expr::Verdict(verdict(&a.nested(2)?)?),
            _ => Expr::Load { to: reg(a, 1)?, value: value(a, 2)? },
        },
        "bitwise" if a.u32(6).unwrap_or(0) == 0 => Expr::Bitwise {
            from: reg(a, 1)?,
            to: reg(a, 2)?,
            mask: value(a, 4)?.try_into().ok()?,
            xor: value(a, 5)?.try_into().ok()?,
        },
        "cmp" => Expr::Cmp {
            reg: reg(a, 1)?,
            op: match a.u32(2)? {
                0 => Cmp::Eq,
                1 => Cmp::Neq,
                _ => return None,
            },
            value: value(a, 3)?,
        },
        "lookup" => {
            let (set, from) = (Arc::from(a.text(1)?), reg(a, 2)?);
            match a.u32(3) {
                Some(0) => Expr::VerdictMap { set, from },
                to => Expr::Lookup {
                    set,
                    from,
                    to: if to.is_some() { Some(reg(a, 3)?) } else { None },
                    invert: a.u32(5).unwrap_or(0) & encode::LOOKUP_INVERT != 0,
                },
            }
        }
        "numgen" => {
            let (to, modulus, offset) = (reg(a, 1)?, a.u32(2)?, a.u32(4).unwrap_or(0));
            match a.u32(3)? {
                0 => Expr::Counter { modulus, offset, to },
                1 => Expr::Random { modulus, offset, to },
                _ => return None,
            }
        }
        "dynset" => {
            let op = a.u32(3)?;
            Expr::Dynset {
                op: [SetOp::Add, SetOp::Update, SetOp::Delete].into_iter().find(|o| encode::set_op(*o) == op)?,
                set: Arc::from(a.text(1)?),
                key: reg(a, 4)?,
                data: reg(a, 5),
                timeout: a.u64(6).unwrap_or(0),
            }
        }
        "nat" if a.u32(1)? == 1 && reg(a, 4).is_none_or(|r| Some(r) == reg(a, 3)) => {
            Expr::Dnat { ip6: a.u32(2)? == 10, address: reg(a, 3)?, port: reg(a, 5)? }
        }
        "masq" if a.u32(1).unwrap_or(0) == encode::FULLY_RANDOM => Expr::Masquerade,
        "reject" => match a.u32(1)? {
            0 => Expr::Reject(Reject::Unreachable(*a.get(2)?.first()?)),
            1 => Expr::Reject(Reject::TcpReset),
            _ => return None,
        },
        _ => return None,
    })
}
