//! Set definitions with what `nft` needs to print them: byte orders, and `typeof` where a field has no named type.
//! The kernel stores these bytes without reading them.

use sys::nft::{Data, SetDef, SetType, set_flags};

/// What a key or value is made of, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Destination address.
    Address,
    /// Source address.
    Client,
    Protocol,
    Port,
    /// A random number: host order, and without a type of its own.
    Slot,
    /// A class, or an endpoint's number: host order.
    ClassId,
}

const HOST: u32 = 1;
const BIG: u32 = 2;
const KEY_BYTEORDER: u8 = 0;
const DATA_BYTEORDER: u8 = 1;
const KEY_TYPEOF: u8 = 3;
const DATA_TYPEOF: u8 = 4;
const CONCAT: u32 = 13;
const CLASSID: u32 = 23;

impl Field {
    /// nft's datatype number.
    fn code(self, v6: bool) -> u32 {
        match self {
            Self::Address | Self::Client if v6 => 8,
            Self::Address | Self::Client => 7,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Slot => 4,
            Self::ClassId => CLASSID,
        }
    }

    /// Bytes before padding.
    fn len(self, v6: bool) -> u8 {
        match self {
            Self::Address | Self::Client if v6 => 16,
            Self::Address | Self::Client | Self::Slot | Self::ClassId => 4,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }

    /// The expression `typeof` shows, as libnftables serialises it: its kind and its parameters.
    fn expression(self, v6: bool) -> (u32, Vec<u8>) {
        const PAYLOAD: u32 = 7;
        const META: u32 = 9;
        const NUMGEN: u32 = 23;
        let payload = |protocol: u32, template: u32| (PAYLOAD, [number(0, protocol), number(1, template)].concat());
        match (self, v6) {
            (Self::Address, false) => payload(12, 12),
            (Self::Address, true) => payload(13, 9),
            (Self::Client, false) => payload(12, 11),
            (Self::Client, true) => payload(13, 8),
            (Self::Port, _) => payload(11, 2),
            (Self::Protocol, _) => (META, number(0, 16)),
            (Self::ClassId, _) => (META, number(0, 2)),
            (Self::Slot, _) => (NUMGEN, [number(0, 1), number(1, 2), number(2, 0)].concat()),
        }
    }
}

fn tlv(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, body.len() as u8];
    out.extend_from_slice(body);
    out
}

fn number(kind: u8, value: u32) -> Vec<u8> {
    tlv(kind, &value.to_ne_bytes())
}

fn type_of(fields: &[Field], v6: bool) -> Vec<u8> {
    let describe = |(kind, body): (u32, Vec<u8>)| [number(0, kind), tlv(1, &body)].concat();
    if let [one] = fields {
        return describe(one.expression(v6));
    }
    let parts: Vec<Vec<u8>> = (0..).zip(fields).map(|(i, f)| tlv(i, &describe(f.expression(v6)))).collect();
    describe((CONCAT, parts.concat()))
}

fn set_type(fields: &[Field], v6: bool) -> SetType {
    let code = fields.iter().fold(0, |code, f| code << 6 | f.code(v6));
    let len = fields.iter().map(|f| u32::from(f.len(v6)).next_multiple_of(4)).sum();
    SetType { code, len }
}

fn byteorder(fields: &[Field]) -> u32 {
    match fields {
        [Field::Slot | Field::ClassId] => HOST,
        [Field::Address | Field::Client] => BIG,
        _ => 0,
    }
}

/// A set, or a map to `data`.
pub fn set(v6: bool, key: &[Field], data: Option<&[Field]>, flags: u32) -> SetDef {
    let mut userdata = number(KEY_BYTEORDER, byteorder(key));
    if let Some(data) = data {
        userdata.extend(number(DATA_BYTEORDER, byteorder(data)));
        if key.contains(&Field::Slot) {
            userdata.extend(tlv(KEY_TYPEOF, &type_of(key, v6)));
            userdata.extend(tlv(DATA_TYPEOF, &type_of(data, v6)));
        }
    }
    let concat = flags & set_flags::CONCAT != 0;
    SetDef {
        key: set_type(key, v6),
        data: data.map(|d| Data::Value(set_type(d, v6))),
        flags: flags | if data.is_some() { set_flags::MAP } else { 0 },
        size: 0,
        fields: if concat { key.iter().map(|f| f.len(v6)).collect() } else { Vec::new() },
        userdata,
    }
}

/// The map from class ids to chains.
pub fn verdict_map() -> SetDef {
    let mut def = set(false, &[Field::ClassId], None, set_flags::MAP);
    def.data = Some(Data::Verdict);
    def
}
