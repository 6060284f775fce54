//! nftables as plain data: tables, chains, rules, sets and elements that can be compared and printed, transactions
//! that change them, and the kernel (or [`crate::fake`]) that takes transactions and reads tables back.
//! Knows the kernel's limits and layouts; refuses to know what a Service is.

mod decode;
mod encode;
mod expr;
mod forward;

use std::{collections::BTreeMap, fmt, sync::Arc};

use smallvec::SmallVec;

pub use crate::netlink::Error;
use crate::netlink::Socket;
pub use expr::{Cmp, CtKey, Expr, Header, MetaKey, Reg, Reject, Rule, SetOp};
pub use forward::Forwarding;

/// Key or data of an element: the concatenated fields, each padded to four bytes, in network order except for
/// host-endian types (marks, class ids, numgen slots).
pub type Bytes = SmallVec<[u8; 40]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ip,
    Ip6,
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }
    /// Bytes in an address.
    pub fn address_len(self) -> u8 {
        match self {
            Self::Ip => 4,
            Self::Ip6 => 16,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(Arc<str>),
    Goto(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Value {
    /// A set's element.
    #[default]
    Nothing,
    Data(Bytes),
    Verdict(Verdict),
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Element {
    pub key: Bytes,
    /// Last key of a range, inclusive; only sets of concatenated intervals have it.
    pub key_end: Option<Box<Bytes>>,
    /// This key ends the interval that began before it (plain interval sets hold half-open intervals).
    pub interval_end: bool,
    pub value: Value,
    /// Shown by `nft`; at most 128 bytes are used.
    pub comment: Option<Arc<str>>,
}

/// Type of a key or of data, as userspace tools name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetType {
    /// nft's datatype number; concatenations hold six bits a field.
    pub code: u32,
    /// Bytes.
    pub len: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetDef {
    pub key: SetType,
    pub data: Option<Data>,
    /// [`set_flags`]
    pub flags: u32,
    /// Most elements the set may hold; 0 is no limit.
    pub size: u32,
    /// Lengths in bytes of the fields of a concatenated interval key; empty otherwise.
    pub fields: Vec<u8>,
    /// How `nft` is to print the keys and values (byte order, `typeof`).
    pub userdata: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    Value(SetType),
    Verdict,
}

/// `NFT_SET_*`
pub mod set_flags {
    pub const INTERVAL: u32 = 0x4;
    pub const MAP: u32 = 0x8;
    pub const TIMEOUT: u32 = 0x10;
    /// Updated from the packet path.
    pub const EVAL: u32 = 0x20;
    pub const CONCAT: u32 = 0x80;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub def: SetDef,
    pub elements: Vec<Element>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainType {
    Filter,
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub kind: ChainType,
    pub hook: Hook,
    pub priority: i32,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Chain {
    /// Policy accept always.
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// A table with everything in it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Table {
    pub sets: BTreeMap<Arc<str>, Set>,
    pub chains: BTreeMap<Arc<str>, Chain>,
}

/// One step of a transaction. Names are within the table that is named beside it.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    AddTable,
    /// The table must exist: put `AddTable` before to be sure.
    DeleteTable,
    AddSet(Arc<str>, SetDef),
    DeleteSet(Arc<str>),
    AddChain(Arc<str>, Option<Base>),
    /// The chain must be empty and unreferenced.
    DeleteChain(Arc<str>),
    /// Appends.
    AddRule(Arc<str>, Rule),
    FlushChain(Arc<str>),
    AddElements(Arc<str>, Vec<Element>),
    DeleteElements(Arc<str>, Vec<Element>),
}

/// Steps that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transaction {
    pub ops: Vec<(Family, Arc<str>, Op)>,
}

impl Transaction {
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
    pub fn push(&mut self, family: Family, table: &Arc<str>, op: Op) {
        self.ops.push((family, table.clone(), op));
    }
    /// Elements added and deleted, for logs and tests.
    pub fn elements(&self) -> (usize, usize) {
        self.ops.iter().fold((0, 0), |(a, d), (_, _, op)| match op {
            Op::AddElements(_, e) => (a + e.len(), d),
            Op::DeleteElements(_, e) => (a, d + e.len()),
            _ => (a, d),
        })
    }
}

/// What takes transactions: the kernel, or a table in memory.
pub trait Tables: Send {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), Error>;
    /// `None` when there is no such table. Sets that the packet path writes ([`set_flags::EVAL`]) come without elements.
    fn read(&mut self, family: Family, table: &str) -> Result<Option<Table>, Error>;
    /// Changes with every committed transaction of anybody in this network namespace.
    fn generation(&mut self) -> Result<u32, Error>;
}

/// The nftables of the network namespace the socket was opened in.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
}

impl Kernel {
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open()? })
    }
}

impl Tables for Kernel {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), Error> {
        if transaction.is_empty() {
            return Ok(());
        }
        self.socket.commit(encode::transaction(transaction), encode::describe)
    }

    fn read(&mut self, family: Family, table: &str) -> Result<Option<Table>, Error> {
        // A table that changes under the dump is read again; others' writes are rare beside the time of one dump.
        for _ in 0..20 {
            match decode::table(&mut self.socket, family, table) {
                Err(Error::Interrupted) => continue,
                other => return other,
            }
        }
        Err(Error::Interrupted)
    }

    fn generation(&mut self) -> Result<u32, Error> {
        decode::generation(&mut self.socket)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(to) => write!(f, "jump {to}"),
            Self::Goto(to) => write!(f, "goto {to}"),
        }
    }
}
