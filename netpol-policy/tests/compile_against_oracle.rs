//! The compiler against the oracle: two ways from the same objects to a verdict that share nothing but the model.

mod support;

use netpol_policy::compile::{Capacities, Snapshot};
use netpol_policy::testing::World;
use support::{Node, answer, cases, cells, expected, first_seed};

#[test]
fn compiled_tables_answer_as_the_api_text_says() {
    let (mut checked, mut allowed) = (0_u64, 0_u64);
    let (first, cases) = (first_seed(), cases(400));
    for seed in first..first + cases {
        let world = World::new(seed);
        let mut node = Node::new(Capacities::default(), Snapshot::default());
        node.apply(world.everything());
        let plan = node.program();
        assert!(plan.refused.is_empty());
        let endpoints: Vec<u32> = world.endpoints.keys().copied().collect();
        for cell in cells(&endpoints, &world.addresses(), &World::packets()) {
            if let Some(expected) = expected(&world, &cell) {
                let answer = answer(&node.tables, &cell);
                assert_eq!(answer, expected, "seed {seed}: {cell:?}");
                checked += 1;
                allowed += u64::from(answer);
            }
        }
    }
    println!("{cases} clusters, {checked} cells, {allowed} of them allowed, 0 disagreements");
    assert!(checked > 0 && allowed > 0 && allowed < checked, "the generator must ask both kinds of questions");
}
