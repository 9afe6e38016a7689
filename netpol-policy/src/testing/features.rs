//! What generated clusters are made of, so that a test can insist that none of it is forgotten.

use std::net::IpAddr;

use super::{NODE, World};
use crate::model::{
    ContainerPort, NamespaceScope, Operator, Peer, Phase, Pod, Policy, PortMatch, PortSpec, Protocol, Rule, Selector,
};

/// Something that changes how a cluster is judged, by name.
pub type Feature = (&'static str, fn(&World) -> bool);

/// All that a generated cluster can have.
pub const FEATURES: &[Feature] = &[
    ("ingress only", |world| any_policy(world, |policy| policy.egress.is_none())),
    ("egress only", |world| any_policy(world, |policy| policy.ingress.is_none())),
    ("both directions", |world| any_policy(world, |policy| policy.ingress.is_some() && policy.egress.is_some())),
    ("no rules: deny all", |world| {
        any_policy(world, |policy| [&policy.ingress, &policy.egress].contains(&&Some(vec![])))
    }),
    ("empty podSelector of a policy", |world| any_policy(world, |policy| is_empty(&policy.selector))),
    ("two policies in a namespace", |world| {
        let namespaces: Vec<&str> = world.cluster.policies.keys().map(|name| name.namespace.as_str()).collect();
        namespaces.windows(2).any(|pair| pair[0] == pair[1])
    }),
    ("rule without peers", |world| any_rule(world, |rule| rule.peers.is_none())),
    ("rule without ports", |world| any_rule(world, |rule| rule.ports.is_none())),
    ("rule without either", |world| any_rule(world, |rule| rule.peers.is_none() && rule.ports.is_none())),
    ("several peers", |world| any_rule(world, |rule| rule.peers.as_ref().is_some_and(|peers| peers.len() > 1))),
    ("several ports", |world| any_rule(world, |rule| rule.ports.as_ref().is_some_and(|ports| ports.len() > 1))),
    ("peer that says nothing", |world| any_peer(world, |peer| *peer == Peer::Nothing)),
    ("podSelector of the policy's namespace", |world| {
        any_peer(world, |peer| matches!(peer, Peer::Pods { namespaces: NamespaceScope::Own(_), .. }))
    }),
    ("empty podSelector of a peer", |world| {
        any_peer(world, |peer| matches!(peer, Peer::Pods { pods, .. } if is_empty(pods)))
    }),
    ("empty namespaceSelector", |world| any_scope(world, is_empty)),
    ("namespaceSelector", |world| any_scope(world, |selector| !is_empty(selector))),
    ("both selectors", |world| {
        any_peer(world, |peer| {
            let Peer::Pods { namespaces: NamespaceScope::Matching(namespaces), pods } = peer else { return false };
            !is_empty(namespaces) && !is_empty(pods)
        })
    }),
    ("In with one value", |world| {
        any_operator(world, |operator| matches!(operator, Operator::In(values) if values.len() == 1))
    }),
    ("In with several values", |world| {
        any_operator(world, |operator| matches!(operator, Operator::In(values) if values.len() > 1))
    }),
    ("NotIn", |world| any_operator(world, |operator| matches!(operator, Operator::NotIn(_)))),
    ("Exists", |world| any_operator(world, |operator| *operator == Operator::Exists)),
    ("DoesNotExist", |world| any_operator(world, |operator| *operator == Operator::DoesNotExist)),
    ("several requirements", |world| any_selector(world, |selector| selector.requirements.len() > 1)),
    ("IPv4 ipBlock", |world| any_block(world, |address, _| address.is_ipv4())),
    ("IPv6 ipBlock", |world| any_block(world, |address, _| address.is_ipv6())),
    ("except", |world| any_block(world, |_, excepts| excepts > 0)),
    ("several excepts", |world| any_block(world, |_, excepts| excepts > 1)),
    ("block of every address", |world| any_block(world, |address, _| address.is_unspecified())),
    ("named port", |world| any_port(world, |ports| matches!(ports, PortSpec::Named(_)))),
    ("one port", |world| any_port(world, |ports| matches!(ports, PortSpec::Range(first, last) if first == last))),
    ("endPort", |world| any_port(world, |ports| matches!(ports, PortSpec::Range(first, last) if first < last))),
    ("every port of a protocol", |world| any_port(world, |ports| *ports == PortSpec::All)),
    ("rule of TCP", |world| any_protocol(world, Protocol::Tcp)),
    ("rule of UDP", |world| any_protocol(world, Protocol::Udp)),
    ("rule of SCTP", |world| any_protocol(world, Protocol::Sctp)),
    ("IPv4 pod", |world| any_pod(world, |pod| families(pod) == (true, false))),
    ("IPv6 pod", |world| any_pod(world, |pod| families(pod) == (false, true))),
    ("dual-stack pod", |world| any_pod(world, |pod| families(pod) == (true, true))),
    ("pod without address", |world| any_pod(world, |pod| pod.addresses.is_empty())),
    ("pod without labels", |world| any_pod(world, |pod| pod.labels.is_empty())),
    ("completed pod", |world| any_pod(world, |pod| pod.phase == Phase::Finished)),
    ("host-network pod", |world| any_pod(world, |pod| pod.host_network)),
    ("pod of another node", |world| any_pod(world, |pod| pod.node != NODE)),
    ("two live pods with one address", |world| {
        let live: Vec<&Pod> = world.cluster.pods.values().filter(|pod| pod.takes_part()).collect();
        live.iter().any(|pod| {
            live.iter()
                .any(|other| other.name != pod.name && other.addresses.iter().any(|it| pod.addresses.contains(it)))
        })
    }),
    ("address of a completed pod reused", |world| {
        let (live, gone): (Vec<&Pod>, Vec<&Pod>) = world.cluster.pods.values().partition(|pod| pod.takes_part());
        gone.iter().any(|pod| live.iter().any(|other| other.addresses.iter().any(|it| pod.addresses.contains(it))))
    }),
    ("one port name, two protocols", |world| twice(world, |a, b| a.name == b.name && a.protocol != b.protocol)),
    ("one port name, two numbers", |world| {
        twice(world, |a, b| (&a.name, a.protocol) == (&b.name, b.protocol) && a.port != b.port)
    }),
    ("unnamed container port", |world| any_pod(world, |pod| pod.ports.iter().any(|port| port.name.is_none()))),
    ("host port", |world| any_pod(world, |pod| !pod.host_ports.is_empty())),
    ("host port of one address", |world| {
        any_pod(world, |pod| pod.host_ports.iter().any(|host_port| host_port.address.is_some()))
    }),
    ("address check off", |world| any_pod(world, |pod| pod.address_check_off)),
    ("namespace with its name for a label, and no other", |world| {
        world.cluster.namespaces.values().any(|namespace| namespace.labels.len() == 1)
    }),
    ("pods or policies in a namespace that is not known yet", |world| {
        let mut objects = world.cluster.pods.keys().chain(world.cluster.policies.keys());
        objects.any(|name| !world.cluster.namespaces.contains_key(&name.namespace))
    }),
    ("adopted endpoint", |world| world.endpoints.values().any(|endpoint| endpoint.adopted)),
    ("dual-stack node", |world| world.cluster.nodes.values().any(|node| node.addresses.iter().any(IpAddr::is_ipv6))),
    ("address of an overlay", |world| world.cluster.nodes.values().any(|node| !node.overlay.is_empty())),
    ("broadcast address", |world| world.cluster.nodes.values().any(|node| !node.broadcasts.is_empty())),
    ("pod at an address of an overlay", |world| {
        let overlay: Vec<&IpAddr> = world.cluster.nodes.values().flat_map(|node| &node.overlay).collect();
        any_pod(world, |pod| pod.takes_part() && pod.addresses.iter().any(|own| overlay.contains(&own)))
    }),
    ("Service", |world| world.cluster.services.values().any(|service| !service.addresses.is_empty())),
    ("headless Service", |world| world.cluster.services.values().any(|service| service.addresses.is_empty())),
    ("node port", |world| {
        world.cluster.services.values().any(|service| service.ports.iter().any(|port| port.node_port != 0))
    }),
    ("Service at a node's address", |world| {
        world.cluster.services.values().any(|service| service.addresses.iter().any(|own| world.local.contains(own)))
    }),
    ("EndpointSlice without a Service", |world| world.cluster.slices.values().any(|slice| slice.service.is_empty())),
    ("backend on this node", |world| {
        let mut backends = world.cluster.slices.values().flat_map(|slice| &slice.addresses);
        backends.any(|backend| world.local.contains(backend))
    }),
    ("ServiceCIDR", |world| world.cluster.service_cidrs.values().any(|range| !range.cidrs.is_empty())),
];

fn is_empty(selector: &Selector) -> bool {
    selector.requirements.is_empty()
}

fn any_pod(world: &World, is: impl Fn(&Pod) -> bool) -> bool {
    world.cluster.pods.values().any(is)
}

/// Whether the pod has addresses of IPv4 and of IPv6.
fn families(pod: &Pod) -> (bool, bool) {
    (pod.addresses.iter().any(IpAddr::is_ipv4), pod.addresses.iter().any(IpAddr::is_ipv6))
}

/// Whether a pod declares two ports that are so to each other, both with a name.
fn twice(world: &World, are: impl Fn(&ContainerPort, &ContainerPort) -> bool) -> bool {
    any_pod(world, |pod| {
        let named = || pod.ports.iter().filter(|port| port.name.is_some());
        named().any(|a| named().any(|b| are(a, b)))
    })
}

fn any_policy(world: &World, is: impl Fn(&Policy) -> bool) -> bool {
    world.cluster.policies.values().any(is)
}

fn any_rule(world: &World, is: impl Fn(&Rule) -> bool) -> bool {
    any_policy(world, |policy| policy.ingress.iter().chain(&policy.egress).flatten().any(&is))
}

fn any_peer(world: &World, is: impl Fn(&Peer) -> bool) -> bool {
    any_rule(world, |rule| rule.peers.iter().flatten().any(&is))
}

fn any_block(world: &World, is: impl Fn(IpAddr, usize) -> bool) -> bool {
    any_peer(world, |peer| match peer {
        Peer::Block { cidr, except } => is(cidr.network(), except.len()),
        Peer::Pods { .. } | Peer::Nothing => false,
    })
}

fn any_scope(world: &World, is: impl Fn(&Selector) -> bool) -> bool {
    any_peer(world, |peer| match peer {
        Peer::Pods { namespaces: NamespaceScope::Matching(selector), pods: _ } => is(selector),
        Peer::Pods { namespaces: NamespaceScope::Own(_), .. } | Peer::Block { .. } | Peer::Nothing => false,
    })
}

fn any_selector(world: &World, is: impl Fn(&Selector) -> bool) -> bool {
    any_policy(world, |policy| is(&policy.selector))
        || any_scope(world, &is)
        || any_peer(world, |peer| matches!(peer, Peer::Pods { pods, .. } if is(pods)))
}

fn any_operator(world: &World, is: impl Fn(&Operator) -> bool) -> bool {
    any_selector(world, |selector| selector.requirements.iter().any(|requirement| is(&requirement.operator)))
}

fn any_match(world: &World, is: impl Fn(&PortMatch) -> bool) -> bool {
    any_rule(world, |rule| rule.ports.iter().flatten().any(&is))
}

fn any_port(world: &World, is: impl Fn(&PortSpec) -> bool) -> bool {
    any_match(world, |entry| is(&entry.ports))
}

fn any_protocol(world: &World, protocol: Protocol) -> bool {
    any_match(world, |entry| entry.protocol == protocol)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::compile::Change;
    use crate::decode::Kind;

    #[test]
    fn every_feature_is_generated_and_missing_often_enough_to_matter() {
        const CLUSTERS: u64 = 1500;
        let mut counts = vec![0_u64; FEATURES.len()];
        for seed in 0..CLUSTERS {
            let world = World::new(seed);
            for (count, (_, has)) in counts.iter_mut().zip(FEATURES) {
                *count += u64::from(has(&world));
            }
        }
        for (count, (name, _)) in counts.iter().zip(FEATURES) {
            println!("{count:>6} of {CLUSTERS}  {name}");
        }
        let rare: Vec<_> = counts.iter().zip(FEATURES).filter(|(count, _)| **count < 15).map(|(_, it)| it.0).collect();
        assert!(rare.is_empty(), "hardly ever generated: {rare:?}");
        let always: Vec<_> = counts.iter().zip(FEATURES).filter(|(count, _)| **count == CLUSTERS).collect();
        assert!(always.is_empty(), "tell nothing apart: {:?}", always.iter().map(|(_, it)| it.0).collect::<Vec<_>>());
    }

    #[test]
    fn every_kind_of_change_is_made_to_generated_clusters() {
        let mut made = BTreeSet::new();
        for seed in 0..100 {
            let mut world = World::new(seed);
            for _ in 0..20 {
                let _new = made.insert(match world.step() {
                    Change::Upsert(object) => format!("upsert {}", object.kind()),
                    Change::Remove(kind, _) => format!("remove {kind}"),
                    Change::EndpointUp(_) => "endpoint up".to_owned(),
                    Change::EndpointDown(_) => "endpoint down".to_owned(),
                    Change::NodeAddresses(_) => "node addresses".to_owned(),
                    Change::ServiceCidrs(_) => "configured ranges".to_owned(),
                });
            }
        }
        let kinds = Kind::ALL.iter().flat_map(|kind| [format!("upsert {kind}"), format!("remove {kind}")]);
        let others = ["endpoint up", "endpoint down", "node addresses"].map(str::to_owned);
        let missing: Vec<_> = kinds.chain(others).filter(|kind| !made.contains(kind)).collect();
        assert!(missing.is_empty(), "never made: {missing:?}");
    }

    #[test]
    fn packets_have_every_protocol_that_policies_name_and_others_and_unknown_ports() {
        let packets = World::packets();
        let of = |protocol| packets.iter().filter(move |(of, _)| *of == protocol);
        for protocol in super::super::PROTOCOLS {
            assert!(of(protocol.number()).any(|(_, port)| port.is_none()));
            assert!(of(protocol.number()).filter(|(_, port)| port.is_some()).count() > 10);
        }
        for protocol in [1, 58, 47] {
            assert_eq!(of(protocol).count(), 1);
        }
    }
}
