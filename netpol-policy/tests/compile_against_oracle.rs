//! The compiler against the oracle: two ways from the same objects to a verdict that share nothing but the model.

mod support;

use netpol_common::abi::{Direction, RULE_NONE};
use netpol_policy::compile::{Capacities, RuleName, Snapshot};
use netpol_policy::model::{Cluster, Policy};
use netpol_policy::oracle;
use netpol_policy::testing::World;
use support::{Cell, Node, cases, cells, expected, first_seed, verdict};

#[test]
fn compiled_tables_answer_as_the_api_text_says() {
    let (mut checked, mut allowed, mut named) = (0_u64, 0_u64, 0_u64);
    let (first, cases) = (first_seed(), cases(400));
    for seed in first..first + cases {
        let world = World::new(seed);
        let mut node = Node::new(Capacities::default(), Snapshot::default());
        node.apply(world.everything());
        let plan = node.program();
        assert!(plan.refused.is_empty());
        let endpoints: Vec<u32> = world.endpoints.keys().copied().collect();
        for cell in cells(&endpoints, &world.addresses(), &World::packets()) {
            let Some(expected) = expected(&world, &cell) else { continue };
            let verdict = verdict(&node.tables, &cell);
            assert_eq!(verdict.allowed, expected, "seed {seed}: {cell:?}");
            checked += 1;
            allowed += u64::from(verdict.allowed);
            // Of an address that two pods claim, what one rule allows of one and another of the other is allowed by
            // neither alone. Dear to check, so only now and then.
            let claims =
                world.cluster.pods.values().filter(|pod| pod.takes_part() && pod.addresses.contains(&cell.peer));
            if verdict.allowed && checked.is_multiple_of(37) && claims.count() < 2 {
                let name = node.compiler.rule_name(verdict.rule);
                assert_eq!(name.is_none(), verdict.rule == RULE_NONE, "seed {seed}: {cell:?}");
                assert!(allows_alone(&world, name.as_ref(), &cell), "seed {seed}: {cell:?} by {name:?}");
                named += 1;
            }
        }
    }
    println!("{cases} clusters, {checked} cells, {allowed} of them allowed, {named} rules verified, 0 disagreements");
    assert!(checked > 0 && allowed > 0 && allowed < checked, "the generator must ask both kinds of questions");
}

/// Whether the rule that is named allows the packet by itself; or, without a name, whether nothing isolates the pod.
fn allows_alone(world: &World, name: Option<&RuleName>, cell: &Cell) -> bool {
    let pod = world.endpoints.get(&cell.endpoint).and_then(|endpoint| world.pod(endpoint)).unwrap();
    let mut cluster = Cluster { policies: Default::default(), ..world.cluster.clone() };
    for policy in world.cluster.policies.values() {
        let isolates = |rules: &Option<Vec<_>>, direction| rules.is_some() && cell.direction() == direction;
        let isolated = isolates(&policy.ingress, Direction::Ingress) || isolates(&policy.egress, Direction::Egress);
        let selected = policy.name.namespace == pod.name.namespace && policy.selector.matches(&pod.labels);
        match name {
            None if isolated && selected => return false,
            Some(name) if name.policy == policy.name => {
                let Policy { name: policy_name, selector, mut ingress, mut egress } = policy.clone();
                assert!(selected && name.direction == cell.direction());
                ingress.iter_mut().for_each(|rules| rules.retain(|rule| rule.index == name.index));
                egress.iter_mut().for_each(|rules| rules.retain(|rule| rule.index == name.index));
                let alone = Policy { name: policy_name.clone(), selector, ingress, egress };
                let _none = cluster.policies.insert(policy_name, alone);
            }
            None | Some(_) => {}
        }
    }
    let ask = if cell.egress { oracle::egress } else { oracle::ingress };
    name.is_none_or(|name| cluster.policies.contains_key(&name.policy))
        && ask(&cluster, pod, cell.peer, cell.protocol, cell.port)
}
