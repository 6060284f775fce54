//! The nftables target: the kernel's tables made equal to [`Desired`], one netlink transaction a change, and read back
//! when it is not known what they hold. The kernel is the only database.

use std::sync::Arc;

use model::{
    IpFamily, Snapshot,
    route::{At, Frontend},
};
use sys::nft::{Element, Family, Op, Table, Tables, Transaction, Value, Verdict};

use crate::{
    Config, Error,
    desired::{self, Class, Context, Desired, Entry, Refusal, Slot},
    elements::{self, Fields},
    layout::{self, Layout, kernel_family},
    target::Target,
};

/// One node's load balancer in nftables.
pub struct Nftables<T> {
    config: Config,
    context: Context,
    tables: T,
    /// Of the ruleset after our last transaction or reading.
    generation: Option<u32>,
    /// Elements and other steps of the last transaction, for tests and metrics.
    pub last: Transaction,
}

impl<T: Tables> Nftables<T> {
    pub fn new(config: Config, tables: T) -> Self {
        let context = config.context();
        Self { config, context, tables, generation: None, last: Transaction::default() }
    }

    pub fn tables(&mut self) -> &mut T {
        &mut self.tables
    }

    fn layout(&self, family: IpFamily) -> Layout<'_> {
        Layout { family, config: &self.config }
    }

    /// The steps from one state to the other.
    pub fn plan(&self, have: &Desired, want: &Desired) -> Transaction {
        let table: Arc<str> = layout::TABLE.into();
        let mut t = Transaction::default();
        let blank = Desired { intact: true, ..Desired::default() };
        let mut base = have;
        if !have.intact {
            // Replaced as a whole, in the same transaction: there is no moment without rules.
            base = &blank;
            for family in &self.context.families {
                let kernel = kernel_family(*family);
                t.push(kernel, &table, Op::AddTable);
                t.push(kernel, &table, Op::DeleteTable);
                t.push(kernel, &table, Op::AddTable);
                build(&mut t, kernel, &table, self.layout(*family).constant());
            }
        }
        self.open_classes(&mut t, &table, base, want);
        data(&mut t, &table, base, want);
        self.close_classes(&mut t, &table, base, want);
        t
    }

    fn open_classes(&self, t: &mut Transaction, table: &Arc<str>, have: &Desired, want: &Desired) {
        for (family, class) in want.classes.keys().filter(|k| !have.classes.contains_key(k)) {
            let kernel = kernel_family(*family);
            let chains = self.layout(*family).class_chains(class);
            for (name, _) in &chains {
                t.push(kernel, table, Op::AddChain(name.clone(), None));
            }
            let main = chains[0].0.clone();
            for (name, rules) in chains {
                for rule in rules {
                    t.push(kernel, table, Op::AddRule(name.clone(), rule));
                }
            }
            t.push(kernel, table, Op::AddElements(layout::CLASSES.into(), vec![class_element(want, class, main)]));
        }
    }

    fn close_classes(&self, t: &mut Transaction, table: &Arc<str>, have: &Desired, want: &Desired) {
        for (family, class) in have.classes.keys().filter(|k| !want.classes.contains_key(k)) {
            let kernel = kernel_family(*family);
            let chains = self.layout(*family).class_chains(class);
            let element = class_element(have, class, chains[0].0.clone());
            t.push(kernel, table, Op::DeleteElements(layout::CLASSES.into(), vec![element]));
            for (name, _) in &chains {
                t.push(kernel, table, Op::FlushChain(name.clone()));
            }
            for (name, _) in chains {
                t.push(kernel, table, Op::DeleteChain(name));
            }
        }
    }
}

impl<T: Tables> Target for Nftables<T> {
    type Desired = Desired;

    fn compile(&self, snapshot: &Snapshot, have: &Desired) -> Desired {
        desired::compile(snapshot, have, &self.context)
    }

    fn observe(&mut self) -> Result<Desired, Error> {
        let mut have = Desired { intact: true, ..Desired::default() };
        self.generation = Some(self.tables.generation()?);
        for family in self.context.families.clone() {
            match self.tables.read(kernel_family(family), layout::TABLE)? {
                None => have.intact = false,
                Some(table) => {
                    let layout = Layout { family, config: &self.config };
                    have.intact &= read(&layout, table, &mut have).is_some();
                }
            }
        }
        Ok(have)
    }

    fn apply(&mut self, have: &Desired, want: &Desired) -> Result<(), Error> {
        self.last = self.plan(have, want);
        if self.last.is_empty() {
            return Ok(());
        }
        self.generation = None;
        self.tables.commit(&self.last)?;
        self.generation = Some(self.tables.generation()?);
        Ok(())
    }

    fn drifted(&mut self) -> Result<bool, Error> {
        Ok(self.generation != Some(self.tables.generation()?))
    }
}

/// Creates everything in a table that has just been added.
fn build(t: &mut Transaction, family: Family, table: &Arc<str>, content: Table) {
    for (name, set) in content.sets {
        t.push(family, table, Op::AddSet(name.clone(), set.def));
        if !set.elements.is_empty() {
            t.push(family, table, Op::AddElements(name, set.elements));
        }
    }
    for (name, chain) in &content.chains {
        t.push(family, table, Op::AddChain(name.clone(), chain.base));
    }
    for (name, chain) in content.chains {
        for rule in chain.rules {
            t.push(family, table, Op::AddRule(name.clone(), rule));
        }
    }
}

fn class_element(desired: &Desired, class: &Class, chain: Arc<str>) -> Element {
    let id = desired.class_id(class).unwrap_or_default();
    Element {
        key: sys::nft::Bytes::from_slice(&id.to_ne_bytes()),
        value: Value::Verdict(Verdict::Goto(chain)),
        ..Element::default()
    }
}

/// Elements to take out of and to put into one map.
#[derive(Default)]
struct Edit {
    out: Vec<Element>,
    r#in: Vec<Element>,
}

/// Collects edits by family and map and turns them into steps: deletions first, since an element that changes is
/// deleted and added in the same transaction.
#[derive(Default)]
struct Edits(std::collections::BTreeMap<(Family, &'static str), Edit>);

impl Edits {
    fn change(&mut self, family: IpFamily, map: &'static str, old: Option<Element>, new: Option<Element>) {
        let edit = self.0.entry((kernel_family(family), map)).or_default();
        edit.out.extend(old);
        edit.r#in.extend(new);
    }

    fn finish(self, t: &mut Transaction, table: &Arc<str>) {
        for ((family, map), edit) in self.0 {
            let map: Arc<str> = map.into();
            if !edit.out.is_empty() {
                t.push(family, table, Op::DeleteElements(map.clone(), edit.out));
            }
            if !edit.r#in.is_empty() {
                t.push(family, table, Op::AddElements(map, edit.r#in));
            }
        }
    }
}

fn by_port(f: &Frontend) -> bool {
    matches!(f.at, At::NodePort(_))
}

fn data(t: &mut Transaction, table: &Arc<str>, have: &Desired, want: &Desired) {
    let mut edits = Edits::default();
    for c in have.services.changes(&want.services, |a, b| a == b) {
        let map = if by_port(c.key) { layout::NODEPORTS } else { layout::SERVICES };
        let element = |state: &Desired, e: &Entry| Element {
            key: elements::frontend(c.key),
            value: elements::id(state.class_id(&e.class).unwrap_or_default()),
            comment: Some(e.label.clone()),
            ..Element::default()
        };
        edits.change(c.key.family(), map, c.old.map(|e| element(have, e)), c.new.map(|e| element(want, e)));
    }
    for c in have.endpoints.changes(&want.endpoints, |a, b| a == b) {
        let (f, slot) = c.key;
        let map = match (slot.is_sticky(), by_port(f)) {
            (false, false) => layout::ENDPOINTS,
            (false, true) => layout::NODEPORT_ENDPOINTS,
            (true, false) => layout::STICKY,
            (true, true) => layout::NODEPORT_STICKY,
        };
        let element = |b| Element { key: elements::slot(f, *slot), value: elements::backend(b), ..Element::default() };
        edits.change(f.family(), map, c.old.map(element), c.new.map(element));
    }
    for c in have.picks.changes(&want.picks, |a, b| a == b) {
        let (f, slot) = c.key;
        let map = if by_port(f) { layout::NODEPORT_PICKS } else { layout::PICKS };
        let element = |to: &Slot| Element {
            key: elements::slot(f, *slot),
            value: elements::id(to.number()),
            ..Element::default()
        };
        edits.change(f.family(), map, c.old.map(element), c.new.map(element));
    }
    for c in have.refused.changes(&want.refused, |a, b| a == b) {
        let map = |refusal: &Refusal| match (refusal, by_port(c.key)) {
            (Refusal::Reject, false) => layout::REJECTED,
            (Refusal::Reject, true) => layout::NODEPORT_REJECTED,
            (Refusal::Drop, false) => layout::DROPPED,
            (Refusal::Drop, true) => layout::NODEPORT_DROPPED,
        };
        let element = || Some(Element { key: elements::frontend(c.key), ..Element::default() });
        if let Some(old) = c.old {
            edits.change(c.key.family(), map(old), element(), None);
        }
        if let Some(new) = c.new {
            edits.change(c.key.family(), map(new), None, element());
        }
    }
    for c in have.ranges.changes(&want.ranges, |_, _| true) {
        let (f, net) = c.key;
        let element = |_: &()| elements::source_range(f, net);
        edits.change(f.family(), layout::RANGES, c.old.map(element), c.new.map(element));
    }
    for c in have.hairpin.changes(&want.hairpin, |_, _| true) {
        let element = |_: &u32| Element { key: elements::hairpin(c.key), ..Element::default() };
        edits.change(IpFamily::of(c.key), layout::HAIRPIN, c.old.map(element), c.new.map(element));
    }
    for c in have.elsewhere.changes(&want.elsewhere, |_, _| true) {
        let element = |_: &u32| Element { key: layout::octets(c.key), ..Element::default() };
        edits.change(IpFamily::of(c.key), layout::ELSEWHERE, c.old.map(element), c.new.map(element));
    }
    edits.finish(t, table);
}

/// Takes one family's table into `have`. `None` when anything in it is not as this program writes it; what could be
/// read is kept even then, so that a rebuilt table keeps its slots.
fn read(layout: &Layout<'_>, mut table: Table, have: &mut Desired) -> Option<()> {
    let family = layout.family;
    let mut sound = true;
    let mut classes = std::collections::BTreeMap::new();
    for e in take(&mut table, layout::CLASSES) {
        let class = match &e.value {
            Value::Verdict(Verdict::Goto(chain)) => Class::parse(chain),
            _ => None,
        };
        match (class, Fields(&e.key).number()) {
            (Some(class), Some(id)) => {
                let number = (id >> 16) as u16;
                sound &=
                    id as u16 == class.slots && *have.behaviours.entry(class.behaviour).or_insert(number) == number;
                classes.insert(id, class);
                have.classes.insert((family, class), 0);
            }
            _ => sound = false,
        }
    }
    for (map, node_port) in [(layout::SERVICES, false), (layout::NODEPORTS, true)] {
        for e in take(&mut table, map) {
            let class = data_of(&e).and_then(|d| Fields(d).number()).and_then(|id| classes.get(&id));
            match (Fields(&e.key).frontend(family, node_port), class) {
                (Some(f), Some(class)) => {
                    *have.classes.entry((family, *class)).or_default() += 1;
                    let label = e.comment.clone().unwrap_or_default();
                    have.services.insert(f, Entry { class: *class, label });
                }
                _ => sound = false,
            }
        }
    }
    // A class that nothing uses would be left behind: no later change makes its count reach zero.
    sound &= have.classes.iter().all(|((f, _), n)| *f != family || *n > 0);
    for (map, node_port, sticky) in [
        (layout::ENDPOINTS, false, 0),
        (layout::NODEPORT_ENDPOINTS, true, 0),
        (layout::STICKY, false, Slot::STICKY),
        (layout::NODEPORT_STICKY, true, Slot::STICKY),
    ] {
        for e in take(&mut table, map) {
            let backend = data_of(&e).and_then(|d| Fields(d).backend(family));
            match (slot_key(&e, family, node_port), backend) {
                (Some((f, slot)), Some(b)) => {
                    have.endpoints.insert((f, Slot(slot.0 | sticky)), b);
                }
                _ => sound = false,
            }
        }
    }
    for (map, node_port) in [(layout::PICKS, false), (layout::NODEPORT_PICKS, true)] {
        for e in take(&mut table, map) {
            let to = data_of(&e).and_then(|d| Fields(d).number());
            match (slot_key(&e, family, node_port), to) {
                (Some(key), Some(to)) => {
                    have.picks.insert(key, Slot(to | Slot::STICKY));
                }
                _ => sound = false,
            }
        }
    }
    for (map, node_port, refusal) in [
        (layout::REJECTED, false, Refusal::Reject),
        (layout::NODEPORT_REJECTED, true, Refusal::Reject),
        (layout::DROPPED, false, Refusal::Drop),
        (layout::NODEPORT_DROPPED, true, Refusal::Drop),
    ] {
        for e in take(&mut table, map) {
            match Fields(&e.key).frontend(family, node_port) {
                Some(f) => sound &= have.refused.insert(f, refusal).is_none(),
                None => sound = false,
            }
        }
    }
    for e in take(&mut table, layout::RANGES) {
        let mut fields = Fields(&e.key);
        let first = fields.frontend(family, false);
        let mut end = Fields(e.key_end.as_ref().map_or(&[], |k| k.as_slice()));
        let last = end.frontend(family, false);
        let net = end.address(family).and_then(|last| fields.network(family, last));
        match (first, net) {
            (Some(f), Some(net)) if first == last => {
                have.ranges.insert((f, net), ());
            }
            _ => sound = false,
        }
    }
    for e in take(&mut table, layout::HAIRPIN) {
        let mut fields = Fields(&e.key);
        match (fields.address(family), fields.address(family)) {
            (Some(a), Some(b)) if a == b => {
                have.hairpin.insert(a, 1);
            }
            _ => sound = false,
        }
    }
    for e in take(&mut table, layout::ELSEWHERE) {
        match Fields(&e.key).address(family) {
            Some(ip) => {
                have.elsewhere.insert(ip, 1);
            }
            None => sound = false,
        }
    }
    let mut expected = layout.constant();
    for class in classes.values() {
        for (name, rules) in layout.class_chains(class) {
            expected.chains.insert(name, sys::nft::Chain { base: None, rules });
        }
    }
    (sound && same(table, expected)).then_some(())
}

/// A set's elements in the order of their keys, in which the maps they go to are cheapest to fill.
fn take(table: &mut Table, set: &str) -> Vec<Element> {
    let mut elements = table.sets.get_mut(set).map(|s| std::mem::take(&mut s.elements)).unwrap_or_default();
    elements.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    elements
}

fn data_of(e: &Element) -> Option<&[u8]> {
    match &e.value {
        Value::Data(d) => Some(d),
        _ => None,
    }
}

fn slot_key(e: &Element, family: IpFamily, node_port: bool) -> Option<(Frontend, Slot)> {
    let mut fields = Fields(&e.key);
    Some((fields.frontend(family, node_port)?, Slot(fields.number()?)))
}

/// Elements have no order; what else is in a table does.
fn same(mut a: Table, mut b: Table) -> bool {
    for table in [&mut a, &mut b] {
        for set in table.sets.values_mut() {
            set.elements.sort_by(|a, b| (&a.key, a.interval_end).cmp(&(&b.key, b.interval_end)));
        }
    }
    a == b
}
