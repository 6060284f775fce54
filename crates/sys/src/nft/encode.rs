//! Transactions to netlink bytes. Numbers are those of `linux/netfilter/nf_tables.h`.

use super::{
    Base, ChainType, Cmp, CtKey, Data, Element, Expr, Family, Header, Hook, MetaKey, Op, Reg, Reject, Rule, SetDef,
    SetOp, Transaction, Value, Verdict,
};
use crate::netlink::{Attrs, Encoder, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, SUBSYS_NFTABLES};

pub(super) const NEWTABLE: u16 = 0;
pub(super) const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
pub(super) const NEWCHAIN: u16 = 3;
pub(super) const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
pub(super) const NEWRULE: u16 = 6;
pub(super) const GETRULE: u16 = 7;
pub(super) const DELRULE: u16 = 8;
pub(super) const NEWSET: u16 = 9;
pub(super) const GETSET: u16 = 10;
const DELSET: u16 = 11;
pub(super) const NEWSETELEM: u16 = 12;
pub(super) const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
pub(super) const GETGEN: u16 = 16;

/// An attribute's length is 16 bits: element lists are split before they reach it.
const LIST_BYTES: usize = 60_000;
/// `data type` of a verdict map.
pub(super) const DATA_VERDICT: u32 = 0xffff_ff00;
pub(super) const ELEM_INTERVAL_END: u32 = 1;
pub(super) const LOOKUP_INVERT: u32 = 1;
pub(super) const FIB_TYPE: u32 = 3;
pub(super) const FIB_SADDR: u32 = 1;
pub(super) const FIB_DADDR: u32 = 2;
pub(super) const FULLY_RANDOM: u32 = 0x10;
/// libnftnl's TLV for element comments.
pub(super) const COMMENT: u8 = 0;
const COMMENT_MAX: usize = 127;

pub(super) fn kind(message: u16) -> u16 {
    (SUBSYS_NFTABLES << 8) | message
}

pub(super) fn meta_number(key: MetaKey) -> u32 {
    match key {
        MetaKey::Priority => 2,
        MetaKey::Mark => 3,
        MetaKey::L4Proto => 16,
    }
}

pub(super) fn ct_number(key: CtKey) -> u32 {
    match key {
        CtKey::State => 0,
        CtKey::Status => 2,
    }
}

pub(super) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

pub(super) fn transaction(t: &Transaction) -> Encoder {
    let mut e = Encoder::batch();
    for (set_id, (family, table, op)) in (1..).zip(&t.ops) {
        op_message(&mut e, *family, table, op, set_id);
    }
    e
}

/// A refused message in words, for errors.
pub(super) fn describe(kind: u16, attrs: Attrs<'_>) -> String {
    let table = attrs.text(1).unwrap_or("?");
    let what = match kind & 0xff {
        NEWTABLE => "to add table",
        DELTABLE => "to delete table",
        NEWCHAIN => return format!("to add chain {} in table {table}", attrs.text(3).unwrap_or("?")),
        DELCHAIN => return format!("to delete chain {} in table {table}", attrs.text(3).unwrap_or("?")),
        NEWRULE => return format!("to add a rule to chain {} in table {table}", attrs.text(2).unwrap_or("?")),
        DELRULE => return format!("to flush chain {} in table {table}", attrs.text(2).unwrap_or("?")),
        NEWSET => return format!("to add set {} in table {table}", attrs.text(2).unwrap_or("?")),
        DELSET => return format!("to delete set {} in table {table}", attrs.text(2).unwrap_or("?")),
        NEWSETELEM => return format!("to add elements to set {} in table {table}", attrs.text(2).unwrap_or("?")),
        DELSETELEM => return format!("to delete elements of set {} in table {table}", attrs.text(2).unwrap_or("?")),
        _ => "a message about table",
    };
    format!("{what} {table}")
}

fn op_message(e: &mut Encoder, family: Family, table: &str, op: &Op, set_id: u32) {
    let begin = |e: &mut Encoder, message, flags| {
        e.begin(kind(message), NLM_F_REQUEST | flags, family.number(), 0);
        e.text(1, table);
    };
    match op {
        Op::AddTable => begin(e, NEWTABLE, NLM_F_CREATE),
        Op::DeleteTable => begin(e, DELTABLE, 0),
        Op::AddSet(name, def) => {
            begin(e, NEWSET, NLM_F_CREATE);
            set(e, name, def, set_id);
        }
        Op::DeleteSet(name) => {
            begin(e, DELSET, 0);
            e.text(2, name);
        }
        Op::AddChain(name, base) => {
            begin(e, NEWCHAIN, NLM_F_CREATE);
            e.text(3, name);
            if let Some(base) = base {
                base_chain(e, base);
            }
        }
        Op::DeleteChain(name) => {
            begin(e, DELCHAIN, 0);
            e.text(3, name);
        }
        Op::AddRule(chain, r) => {
            begin(e, NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
            e.text(2, chain);
            rule(e, r);
        }
        Op::FlushChain(chain) => {
            begin(e, DELRULE, 0);
            e.text(2, chain);
        }
        Op::AddElements(name, list) => return elements(e, family, table, name, list, NEWSETELEM, NLM_F_CREATE),
        Op::DeleteElements(name, list) => return elements(e, family, table, name, list, DELSETELEM, 0),
    }
    e.end();
}

fn base_chain(e: &mut Encoder, base: &Base) {
    e.nest(4, |e| {
        e.u32(1, hook_number(base.hook));
        e.u32(2, base.priority as u32);
    });
    e.u32(5, 1); // policy accept
    e.text(
        7,
        match base.kind {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
        },
    );
}

fn set(e: &mut Encoder, name: &str, def: &SetDef, id: u32) {
    e.text(2, name);
    e.u32(3, def.flags);
    e.u32(4, def.key.code);
    e.u32(5, def.key.len);
    match def.data {
        None => {}
        Some(Data::Value(data)) => {
            e.u32(6, data.code);
            e.u32(7, data.len);
        }
        Some(Data::Verdict) => {
            e.u32(6, DATA_VERDICT);
            e.u32(7, 0);
        }
    }
    if def.size != 0 || !def.fields.is_empty() {
        e.nest(9, |e| {
            if def.size != 0 {
                e.u32(1, def.size);
            }
            if !def.fields.is_empty() {
                e.nest(2, |e| {
                    for len in &def.fields {
                        e.nest(1, |e| e.u32(1, u32::from(*len)));
                    }
                });
            }
        });
    }
    e.u32(10, id);
    if !def.userdata.is_empty() {
        e.attr(13, &def.userdata);
    }
}

fn elements(e: &mut Encoder, family: Family, table: &str, set: &str, list: &[Element], message: u16, flags: u16) {
    let adding = message == NEWSETELEM;
    let mut rest = list.iter().peekable();
    while rest.peek().is_some() {
        e.begin(kind(message), NLM_F_REQUEST | flags, family.number(), 0);
        e.text(1, table);
        e.text(2, set);
        e.nest(3, |e| {
            let start = e.bytes.len();
            while e.bytes.len() - start < LIST_BYTES {
                let Some(element) = rest.next() else { break };
                e.nest(1, |e| one_element(e, element, adding));
            }
        });
        e.end();
    }
}

fn one_element(e: &mut Encoder, element: &Element, adding: bool) {
    e.nest(1, |e| e.attr(1, &element.key));
    if let Some(end) = &element.key_end {
        e.nest(10, |e| e.attr(1, end));
    }
    if element.interval_end {
        e.u32(3, ELEM_INTERVAL_END);
    }
    if !adding {
        return;
    }
    match &element.value {
        Value::Nothing => {}
        Value::Data(data) => e.nest(2, |e| e.attr(1, data)),
        Value::Verdict(v) => e.nest(2, |e| verdict(e, v)),
    }
    if let Some(comment) = &element.comment {
        let text = clip(comment);
        let mut tlv = Vec::with_capacity(text.len() + 3);
        tlv.extend_from_slice(&[COMMENT, text.len() as u8 + 1]);
        tlv.extend_from_slice(text.as_bytes());
        tlv.push(0);
        e.attr(6, &tlv);
    }
}

fn clip(text: &str) -> &str {
    let mut end = text.len().min(COMMENT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn verdict(e: &mut Encoder, v: &Verdict) {
    let (code, chain) = match v {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(to) => (-3i32, Some(to)),
        Verdict::Goto(to) => (-4, Some(to)),
        Verdict::Return => (-5, None),
    };
    e.nest(2, |e| {
        e.u32(1, code as u32);
        if let Some(chain) = chain {
            e.text(2, chain);
        }
    });
}

fn rule(e: &mut Encoder, rule: &Rule) {
    e.nest(4, |e| {
        for x in &rule.exprs {
            e.nest(1, |e| {
                e.text(1, name(x));
                e.nest(2, |e| body(e, x));
            });
        }
    });
}

fn name(x: &Expr) -> &str {
    match x {
        Expr::Payload { .. } => "payload",
        Expr::Meta { .. } | Expr::SetMeta { .. } => "meta",
        Expr::Ct { .. } => "ct",
        Expr::FibType { .. } => "fib",
        Expr::Load { .. } | Expr::Verdict(_) => "immediate",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Cmp { .. } => "cmp",
        Expr::Lookup { .. } | Expr::VerdictMap { .. } => "lookup",
        Expr::Random { .. } | Expr::Counter { .. } => "numgen",
        Expr::Dynset { .. } => "dynset",
        Expr::Dnat { .. } => "nat",
        Expr::Masquerade => "masq",
        Expr::Reject(_) => "reject",
        Expr::Foreign(name) => name,
    }
}

/// On the wire the 32-bit registers begin at 8; 0 is the verdict.
fn reg(r: Reg) -> u32 {
    8 + u32::from(r.0)
}

fn body(e: &mut Encoder, x: &Expr) {
    match x {
        Expr::Payload { header, offset, len, to } => {
            e.u32(1, reg(*to));
            e.u32(2, if *header == Header::Network { 1 } else { 2 });
            e.u32(3, u32::from(*offset));
            e.u32(4, u32::from(*len));
        }
        Expr::Meta { key, to } => {
            e.u32(1, reg(*to));
            e.u32(2, meta_number(*key));
        }
        Expr::SetMeta { key, from } => {
            e.u32(2, meta_number(*key));
            e.u32(3, reg(*from));
        }
        Expr::Ct { key, to } => {
            e.u32(1, reg(*to));
            e.u32(2, ct_number(*key));
        }
        Expr::FibType { source, to } => {
            e.u32(1, reg(*to));
            e.u32(2, FIB_TYPE);
            e.u32(3, if *source { FIB_SADDR } else { FIB_DADDR });
        }
        Expr::Load { value, to } => {
            e.u32(1, reg(*to));
            e.nest(2, |e| e.attr(1, value));
        }
        Expr::Verdict(v) => {
            e.u32(1, 0);
            e.nest(2, |e| verdict(e, v));
        }
        Expr::Bitwise { from, to, mask, xor } => {
            e.u32(1, reg(*from));
            e.u32(2, reg(*to));
            e.u32(3, 4);
            e.nest(4, |e| e.attr(1, mask));
            e.nest(5, |e| e.attr(1, xor));
        }
        Expr::Cmp { reg: from, op, value } => {
            e.u32(1, reg(*from));
            e.u32(2, if *op == Cmp::Eq { 0 } else { 1 });
            e.nest(3, |e| e.attr(1, value));
        }
        Expr::Lookup { set, from, to, invert } => {
            e.text(1, set);
            e.u32(2, reg(*from));
            if let Some(to) = to {
                e.u32(3, reg(*to));
            }
            if *invert {
                e.u32(5, LOOKUP_INVERT);
            }
        }
        Expr::VerdictMap { set, from } => {
            e.text(1, set);
            e.u32(2, reg(*from));
            e.u32(3, 0);
        }
        Expr::Random { modulus, offset, to } => number(e, 1, *modulus, *offset, *to),
        Expr::Counter { modulus, offset, to } => number(e, 0, *modulus, *offset, *to),
        Expr::Dynset { op, set, key, data, timeout } => {
            e.text(1, set);
            e.u32(3, set_op(*op));
            e.u32(4, reg(*key));
            if let Some(data) = data {
                e.u32(5, reg(*data));
            }
            if *timeout != 0 {
                e.u64(6, *timeout);
            }
        }
        Expr::Dnat { ip6, address, port } => {
            e.u32(1, 1);
            e.u32(2, if *ip6 { 10 } else { 2 });
            e.u32(3, reg(*address));
            e.u32(5, reg(*port));
        }
        Expr::Masquerade => e.u32(1, FULLY_RANDOM),
        Expr::Reject(Reject::TcpReset) => e.u32(1, 1),
        Expr::Reject(Reject::Unreachable(code)) => {
            e.u32(1, 0);
            e.attr(2, &[*code]);
        }
        Expr::Foreign(_) => {}
    }
}

/// `NFT_NG_INCREMENTAL` (0) or `NFT_NG_RANDOM` (1).
fn number(e: &mut Encoder, generator: u32, modulus: u32, offset: u32, to: Reg) {
    e.u32(1, reg(to));
    e.u32(2, modulus);
    e.u32(3, generator);
    e.u32(4, offset);
}

pub(super) fn set_op(op: SetOp) -> u32 {
    match op {
        SetOp::Add => 0,
        SetOp::Update => 1,
        SetOp::Delete => 2,
    }
}
