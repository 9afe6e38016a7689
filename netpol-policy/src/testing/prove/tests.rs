//! The comparisons notice what is wrong: tables are spoiled, and each must say so.

use super::*;

fn compiled(seed: u64) -> (World, MemoryTables) {
    let world = World::new(seed);
    let mut node = Node::new(Capacities::default(), Snapshot::default());
    node.apply(world.everything());
    let _plan = node.program();
    (world, node.tables)
}

/// How many of some clusters are noticed, of those whose tables could be spoiled.
fn noticed(
    spoil: impl Fn(&mut MemoryTables) -> bool,
    compare: impl Fn(&World, &MemoryTables) -> Result<(), String>,
) -> (usize, usize) {
    let (mut spoiled, mut noticed) = (0, 0);
    for seed in 0..30 {
        let (world, mut tables) = compiled(seed);
        assert_eq!(compare(&world, &tables), Ok(()), "seed {seed}");
        if spoil(&mut tables) {
            spoiled += 1;
            noticed += usize::from(compare(&world, &tables).is_err());
        }
    }
    (noticed, spoiled)
}

/// Takes every row of a policy away, so that all is denied to whom anything isolates.
fn without_rules(tables: &mut MemoryTables) -> bool {
    let rules: Vec<_> = tables.snapshot().rules.keys().copied().collect();
    rules.iter().for_each(|key| tables.apply(&MapOp::RemoveRule(*key)));
    !rules.is_empty()
}

#[test]
fn tables_without_rules_are_noticed_by_cells_and_by_packets() {
    let by_cells =
        |world: &World, tables: &MemoryTables| of_cells(world, tables, 1, &mut Random::new(1), &mut Tally::default());
    let by_packets =
        |world: &World, tables: &MemoryTables| of_packets(world, tables, 3, &mut Random::new(1), &mut Tally::default());
    for (found, spoiled) in [noticed(without_rules, by_cells), noticed(without_rules, by_packets)] {
        assert!(spoiled >= 8 && found > spoiled / 2, "{found} of {spoiled}");
    }
}

#[test]
fn a_service_without_its_row_is_noticed() {
    let spoil = |tables: &mut MemoryTables| {
        let first = tables.snapshot().services.keys().next().copied();
        first.iter().for_each(|key| tables.apply(&MapOp::RemoveService(*key)));
        first.is_some()
    };
    let compare =
        |world: &World, tables: &MemoryTables| proxied::compare(world, tables, 1, &mut Random::new(1)).map(|_| ());
    let (found, spoiled) = noticed(spoil, compare);
    assert!(spoiled > 5 && found > spoiled / 2, "{found} of {spoiled}");
}

#[test]
fn a_row_that_only_one_of_two_tables_has_is_a_difference() {
    let has_rules = |tables: &MemoryTables| !tables.snapshot().rules.is_empty();
    let tables = (0..).map(|seed| compiled(seed).1).find(has_rules).unwrap();
    let mut less = MemoryTables::of_snapshot(tables.snapshot().clone());
    assert_eq!(Meaning::of(&tables).differences(&Meaning::of(&less)), Vec::<String>::new());
    assert!(without_rules(&mut less));
    assert!(!Meaning::of(&tables).differences(&Meaning::of(&less)).is_empty());
}

#[test]
fn one_in_so_many_is_asked_and_all_of_them_by_some_seed() {
    let asked = |seed| sample((0..100).collect(), 7, &mut Random::new(seed)).collect::<Vec<i32>>();
    let mut all: Vec<i32> = (0..60).flat_map(asked).collect();
    assert!((13..=15).contains(&asked(0).len()));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 100);
}
