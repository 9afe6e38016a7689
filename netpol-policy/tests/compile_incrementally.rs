//! Histories of changes: what each single write shows, what incremental work adds up to, and what a restart keeps.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::abi::EndpointWord;
use netpol_policy::compile::memory::MemoryTables;
use netpol_policy::compile::{Capacities, Change, GRACE_MS, MapOp, Plan, Snapshot};
use netpol_policy::testing::{Random, World};
use support::{Cell, Meaning, Node, answer, cases, cells, expected, first_seed, judge};

/// Enough packets to tell answers apart, few enough to ask after every write.
const FEW_PACKETS: [(u8, Option<u16>); 12] = [
    (1, None),
    (6, None),
    (6, Some(1)),
    (6, Some(80)),
    (6, Some(8080)),
    (6, Some(65535)),
    (17, None),
    (17, Some(53)),
    (17, Some(443)),
    (132, None),
    (132, Some(80)),
    (132, Some(9090)),
];

/// After each write one cell in so many is looked at.
const SHARES: usize = 7;

/// A history: a world, its node, and what was checked.
struct History {
    seed: u64,
    world: World,
    node: Node,
    random: Random,
    /// Programs that have read word and class, and come to the rows later.
    readers: Vec<Reader>,
    checked: u64,
}

/// A program between its reads of word and class and that of the rows.
struct Reader {
    /// The last moment at which it can have read word and class.
    read_ms: u64,
    cell: Cell,
    set: u32,
    class: u32,
    answer: bool,
}

impl History {
    fn new(seed: u64) -> Self {
        let world = World::new(seed);
        let mut node = Node::new(Capacities::default(), Snapshot::default());
        node.apply(world.everything());
        let mut history = Self { seed, world, node, random: Random::new(!seed), readers: Vec::new(), checked: 0 };
        let nobody = BTreeMap::new();
        let addresses = history.world.addresses();
        history.watch(&nobody, &addresses);
        history
    }

    /// The endpoints with the addresses of their pods. A connection of a pod to its own address never leaves it, and
    /// a change of the pod changes both ends at once.
    fn own_addresses(&self) -> BTreeMap<u32, BTreeSet<IpAddr>> {
        let own = |endpoint: &netpol_policy::compile::Endpoint| {
            let pod = endpoint.pod.as_ref().and_then(|(name, _)| self.world.cluster.pods.get(name));
            pod.map(|pod| pod.addresses.iter().copied().collect()).unwrap_or_default()
        };
        self.world.endpoints.iter().map(|(number, endpoint)| (*number, own(endpoint))).collect()
    }

    /// One change, one plan.
    fn step(&mut self) {
        let own = self.own_addresses();
        let mut addresses = self.world.addresses();
        let change = self.world.step();
        addresses.extend(self.world.addresses());
        self.node.apply([change]);
        self.node.now_ms += *self.random.pick(&[0, 1, 300, 999, 1000, 2500, 40_000]);
        self.watch(&own, &addresses);
    }

    /// A new agent takes over the maps.
    fn restart(&mut self, with_change: bool) {
        let own = self.own_addresses();
        let mut addresses = self.world.addresses();
        if with_change {
            let _change = self.world.step();
            addresses.extend(self.world.addresses());
        }
        let snapshot = self.node.tables.snapshot().clone();
        // Starting takes longer than any program runs, and the new agent's clock starts anew.
        self.readers.clear();
        self.node = Node::new(Capacities::default(), snapshot);
        self.node.apply(self.world.everything());
        self.watch(&own, &addresses);
    }

    /// Plans, and looks at the tables after every single write.
    fn watch(&mut self, own_before: &BTreeMap<u32, BTreeSet<IpAddr>>, addresses: &[IpAddr]) {
        let mut own = own_before.clone();
        for (endpoint, addresses) in self.own_addresses() {
            own.entry(endpoint).or_default().extend(addresses);
        }
        let mut addresses: Vec<IpAddr> = addresses.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        while addresses.len() > 40 {
            let position = self.random.below(addresses.len());
            let _left = addresses.remove(position);
        }
        let endpoints: Vec<u32> = own.keys().copied().collect();
        let cells: Vec<Cell> = cells(&endpoints, &addresses, &FEW_PACKETS)
            .into_iter()
            .filter(|cell| !own[&cell.endpoint].contains(&cell.peer))
            .collect();
        let before: Vec<bool> = cells.iter().map(|cell| answer(&self.node.tables, cell)).collect();
        let shift = self.random.below(SHARES);
        for (cell, before) in cells.iter().zip(&before).skip(shift).step_by(SHARES) {
            let (set, class) = read(&self.node.tables, cell);
            self.readers.push(Reader { read_ms: self.node.now_ms, cell: *cell, set, class, answer: *before });
        }
        let words = self.node.tables.snapshot().words.clone();

        let plan = self.node.compiler.plan(self.node.now_ms);
        assert!(plan.refused.is_empty(), "seed {}: {:?}", self.seed, plan.refused);
        let mut after = MemoryTables::of_snapshot(self.node.tables.snapshot().clone());
        plan.ops.iter().for_each(|op| after.apply(op));
        let after: Vec<bool> = cells.iter().map(|cell| answer(&after, cell)).collect();

        for (position, op) in plan.ops.iter().enumerate() {
            self.check_order(op);
            self.node.tables.apply(op);
            // A share of the cells after each write, all of them in turn.
            for index in (position % SHARES..cells.len()).step_by(SHARES) {
                let now = answer(&self.node.tables, &cells[index]);
                assert!(
                    now == before[index] || now == after[index],
                    "seed {}: {:?} is {now} after write {position} of {}: {op:?}",
                    self.seed,
                    cells[index],
                    plan.ops.len()
                );
                self.checked += 1;
            }
        }
        let now_ms = self.node.now_ms;
        self.readers.retain(|reader| now_ms < reader.read_ms + GRACE_MS);
        for Reader { read_ms, cell, set, class, answer } in &self.readers {
            let now = judge(&self.node.tables, *set, *class, cell);
            assert_eq!(now, *answer, "seed {}: rows of {cell:?} went under a reader of {read_ms}", self.seed);
        }
        self.check_epochs(&plan, &words, &cells, &before, &after);
    }

    /// Rows never change while something refers to them; epochs are written before the words that bear them.
    fn check_order(&self, op: &MapOp) {
        let tables = self.node.tables.snapshot();
        let known = |key: netpol_common::abi::DigestKey| tables.digests.contains_key(&key);
        let key = |kind: u32, id: u32| netpol_common::abi::DigestKey { kind, id };
        use netpol_common::abi::{CLASS_ANY, CLASS_NONE, id_kind};
        match op {
            MapOp::PutRule(rule, row) => {
                assert!(!tables.rules.contains_key(rule), "a verdict row was changed: {rule:?}");
                assert!(known(key(id_kind::SET, rule.set)));
                assert!(matches!(rule.class, CLASS_NONE | CLASS_ANY) || known(key(id_kind::CLASS, rule.class)));
                assert!(row.port_set == 0 || known(key(id_kind::PORT_SET, row.port_set)));
                assert!(row.rule == 0 || known(key(id_kind::RULE, row.rule)));
            }
            MapOp::PutPort { prefix_len, key: port, row } => {
                assert!(!tables.ports.contains_key(&(*prefix_len, *port)), "a port row was changed");
                assert!(known(key(id_kind::PORT_SET, u32::from_be_bytes(port.port_set))));
                assert!(known(key(id_kind::RULE, row.rule)));
            }
            MapOp::PutDigest(digest, _) => assert!(!known(*digest), "an id changed its meaning: {digest:?}"),
            MapOp::PutClass(_, row) => {
                assert!(row.class == CLASS_NONE || known(key(id_kind::CLASS, row.class)));
            }
            MapOp::PutCidr(_, class) => assert!(*class == CLASS_NONE || known(key(id_kind::CLASS, *class))),
            MapOp::SetWord { endpoint: _, word } => {
                assert!(word.0 == 0 || (word.epoch() != 0 && word.epoch() == tables.epoch));
            }
            MapOp::RemoveDigest(_)
            | MapOp::RemovePort { .. }
            | MapOp::RemoveRule(_)
            | MapOp::RemoveClass(_)
            | MapOp::RemoveCidr(_)
            | MapOp::PutAddress(_)
            | MapOp::RemoveAddress(_)
            | MapOp::SetOptions { .. }
            | MapOp::PutService(..)
            | MapOp::RemoveService(_)
            | MapOp::PutServiceCidr(_)
            | MapOp::RemoveServiceCidr(_)
            | MapOp::SetEpoch(_) => {}
        }
    }

    /// An endpoint's epoch changes when one of its answers does, and else only together with its set.
    fn check_epochs(
        &self,
        plan: &Plan,
        words: &BTreeMap<u32, EndpointWord>,
        cells: &[Cell],
        before: &[bool],
        after: &[bool],
    ) {
        let mut changed = BTreeSet::new();
        for ((cell, before), after) in cells.iter().zip(before).zip(after) {
            if before != after {
                let _new = changed.insert(cell.endpoint);
            }
        }
        let now = &self.node.tables.snapshot().words;
        let zero = EndpointWord(0);
        for endpoint in changed {
            let (old, new) = (words.get(&endpoint).unwrap_or(&zero), now.get(&endpoint).unwrap_or(&zero));
            assert_ne!(old.epoch(), new.epoch(), "seed {}: {endpoint} keeps its epoch: {:?}", self.seed, plan.ops);
        }
    }

    /// Comes to rest, and compares with the same cluster compiled from nothing, and with the oracle.
    fn check_full(&mut self, why: &str) {
        self.node.quiesce();
        let mut full = Node::new(Capacities::default(), Snapshot::default());
        full.compiler = self.node.compiler.full();
        full.quiesce();
        let context = format!("seed {}, {why}: incremental, full", self.seed);
        Meaning::of(&self.node.tables).assert_same(&Meaning::of(&full.tables), &context);
        let endpoints: Vec<u32> = self.world.endpoints.keys().copied().collect();
        for cell in cells(&endpoints, &self.world.addresses(), &FEW_PACKETS) {
            if let Some(expected) = expected(&self.world, &cell) {
                assert_eq!(answer(&self.node.tables, &cell), expected, "seed {}, {why}: {cell:?}", self.seed);
            }
        }
    }
}

/// What a program has read before it comes to the rows.
fn read(tables: &MemoryTables, cell: &Cell) -> (u32, u32) {
    let set = tables.snapshot().words.get(&cell.endpoint).map_or(0, |word| word.set());
    (set, tables.class_of(cell.peer))
}

#[test]
fn after_every_single_write_each_cell_answers_as_before_the_plan_or_as_after_it() {
    let (mut checked, mut steps) = (0, 0);
    let (first, cases) = (first_seed(), cases(100));
    for seed in first..first + cases {
        let mut history = History::new(seed);
        for _ in 0..12 {
            history.step();
            steps += 1;
        }
        checked += history.checked;
    }
    println!("{cases} histories, {steps} changes, {checked} answers looked at between writes");
}

#[test]
fn incremental_work_adds_up_to_the_same_tables_as_compiling_from_nothing() {
    let (first, cases) = (first_seed(), cases(100));
    let mut changes = 0;
    for seed in first..first + cases {
        let mut world = World::new(seed);
        let mut random = Random::new(seed ^ 0x5eed);
        let mut node = Node::new(Capacities::default(), Snapshot::default());
        node.apply(world.everything());
        let _plan = node.program();
        for _ in 0..6 {
            // Several changes a plan, as in a burst.
            for _ in 0..1 + random.below(6) {
                let change = world.step();
                node.apply([change]);
                changes += 1;
            }
            node.now_ms += *random.pick(&[0, 500, 1000, 60_000]);
            let _plan = node.program();
        }
        let mut history = History { seed, world, node, random, readers: Vec::new(), checked: 0 };
        history.check_full("bursts");
    }
    println!("{cases} histories, {changes} changes");
}

#[test]
fn a_restart_without_changes_writes_nothing() {
    let (first, cases) = (first_seed(), cases(100));
    for seed in first..first + cases {
        let world = World::new(seed);
        let mut node = Node::new(Capacities::default(), Snapshot::default());
        node.apply(world.everything());
        node.quiesce();
        let mut again = Node::new(Capacities::default(), node.tables.snapshot().clone());
        // What is listed first differs from one start to the next.
        let mut changes = world.everything();
        changes.reverse();
        again.apply(changes);
        let plan = again.compiler.plan(1);
        assert_eq!(plan, Plan::default(), "seed {seed}");
    }
}

#[test]
fn a_restart_after_changes_shows_no_other_answer_than_the_old_and_the_new() {
    let (mut checked, mut restarts) = (0, 0);
    let (first, cases) = (first_seed(), cases(100));
    for seed in first..first + cases {
        let mut history = History::new(seed);
        for _ in 0..4 {
            history.step();
            let settled = history.random.chance(50);
            if settled {
                history.node.quiesce();
            }
            let with_change = history.random.chance(80);
            history.restart(with_change);
            restarts += 1;
        }
        history.check_full("restarts");
        checked += history.checked;
    }
    println!("{cases} histories, {restarts} restarts, {checked} answers looked at between writes");
}

#[test]
fn an_agent_that_died_in_the_middle_of_a_plan_leaves_nothing_behind() {
    let (mut checked, mut deaths) = (0, 0);
    let (first, cases) = (first_seed(), cases(100));
    for seed in first..first + cases {
        let mut history = History::new(seed);
        for _ in 0..4 {
            let change = history.world.step();
            history.node.apply([change]);
            let plan = history.node.compiler.plan(history.node.now_ms);
            let done = history.random.below(plan.ops.len() + 1);
            for op in &plan.ops[..done] {
                history.node.tables.apply(op);
            }
            // What the dead agent was about to do is the change that the next one sees.
            history.restart(false);
            deaths += 1;
        }
        history.check_full("deaths");
        checked += history.checked;
    }
    println!("{cases} histories, {deaths} deaths, {checked} answers looked at between writes");
}

#[test]
fn an_event_that_changes_nothing_writes_nothing() {
    for seed in first_seed()..first_seed() + cases(50) {
        let world = World::new(seed);
        let mut node = Node::new(Capacities::default(), Snapshot::default());
        node.apply(world.everything());
        node.quiesce();
        node.apply(world.everything().into_iter().filter(|change| !matches!(change, Change::Remove(..))));
        assert_eq!(node.program(), Plan::default(), "seed {seed}");
    }
}
