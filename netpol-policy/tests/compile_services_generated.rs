//! Services of generated clusters: the compiled rows against the API's text, and in maps that are too small.

mod support;

use std::collections::BTreeSet;

use netpol_policy::compile::{Capacities, Refused, Snapshot};
use netpol_policy::testing::{Random, World, compare_services};
use support::{Node, cases, first_seed};

#[test]
fn rows_name_the_local_backends_that_services_have_by_the_api_text() {
    let (mut checked, mut named) = (0_u64, 0_u64);
    let (first, cases) = (first_seed(), cases(60));
    for seed in first..first + cases {
        let mut world = World::new(seed);
        let mut random = Random::new(seed ^ 0xd6);
        let mut node = Node::new(Capacities::default(), Snapshot::default());
        node.apply(world.everything());
        for _ in 0..8 {
            for _ in 0..random.below(6) {
                let change = world.step();
                node.apply([change]);
            }
            let _plan = node.program();
            let compared = compare_services(&world, &node.tables, 1, &mut random);
            let (asked, backends) = compared.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
            checked += asked;
            named += backends;
        }
    }
    println!("{cases} histories, {checked} addresses and ports, {named} local backends, 0 disagreements");
    assert!(named > 0, "some backends must be local");
}

#[test]
fn services_that_do_not_fit_are_reported_and_the_others_have_the_rows_of_a_roomy_map() {
    let (mut kept, mut withheld) = (0_u64, 0_u64);
    let (first, cases) = (first_seed(), cases(60));
    for seed in first..first + cases {
        let mut world = World::new(seed);
        let mut random = Random::new(seed ^ 0xf17);
        let services = random.below(24) as u32;
        let mut small = Node::new(Capacities { services, ..Capacities::default() }, Snapshot::default());
        let mut roomy = Node::new(Capacities::default(), Snapshot::default());
        for node in [&mut small, &mut roomy] {
            node.apply(world.everything());
        }
        for step in 0..10 {
            let context = format!("seed {seed}, step {step}, room for {services}");
            let mut reported: BTreeSet<String> = small.compiler.refusals().map(ToString::to_string).collect();
            let plan = small.program();
            reported.extend(plan.refused.iter().map(ToString::to_string));
            let _plan = roomy.program();
            let (here, all) = (&small.tables.snapshot().services, &roomy.tables.snapshot().services);
            assert!(here.len() <= services as usize, "{context}");
            for refusal in small.compiler.refusals() {
                assert!(reported.contains(&refusal.to_string()), "{context}: {refusal} is not reported");
            }
            let refused = small.compiler.refusals().filter(|refusal| matches!(refusal.what, Refused::Service { .. }));
            assert_eq!(here.len() + refused.count(), all.len(), "{context}");
            for (key, row) in here {
                assert_eq!(all.get(key), Some(row), "{context}: {key:?}");
            }
            kept += here.len() as u64;
            withheld += (all.len() - here.len()) as u64;
            small.now_ms += *random.pick(&[0, 500, 1000, 5000]);
            if random.chance(20) {
                let snapshot = small.tables.snapshot().clone();
                small = Node::new(Capacities { services, ..Capacities::default() }, snapshot);
                small.apply(world.everything());
            }
            for _ in 0..random.below(4) {
                let change = world.step();
                small.apply([change.clone()]);
                roomy.apply([change]);
            }
        }
        small.quiesce();
    }
    println!("{cases} histories, {kept} rows kept, {withheld} withheld and reported");
    assert!(kept > 0 && withheld > 0);
}
