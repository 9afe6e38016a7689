//! A node under the agent and under IPVS, with pods on it and hosts outside.

use std::net::{IpAddr, SocketAddr};

use netpol_policy::model::{ObjectName, Protocol};
use netpol_suites::backends::{self, Rewriter, Tally};
use netpol_suites::{agent_binary, cells};
use netpol_testbed::namespace::Namespace;
use netpol_testbed::sandbox::cells::End;
use netpol_testbed::sandbox::{Families, Options, Policies, Sandbox};
use serde_json::{Value, json};

use super::proxy::{self, Virtual};

/// The namespace of all pods here.
const NAMESPACE: &str = "shop";

/// The port of every Service, where no pod listens.
pub(crate) const PORT: u16 = 80;

/// Where everybody listens.
pub(crate) const TARGET: u16 = 8080;

/// Connections of one case.
pub(crate) const MANY: usize = 200;

/// Hosts outside, in both families.
pub(crate) const OUTSIDE: [[&str; 2]; 2] = [["203.0.113.10", "2001:db8:113::10"], ["203.0.113.11", "2001:db8:113::11"]];

/// The agent, the proxy, and everybody.
pub(crate) struct Site {
    sandbox: Sandbox,
    /// All but policies and Services.
    base: Vec<Value>,
    services: Vec<Value>,
    policies: Vec<Value>,
}

impl Site {
    /// `client` is what policies isolate; `free` is never isolated; `blue` and `green` are backends, and so is `host`, in
    /// the node's own network.
    pub(crate) fn start() -> Self {
        let (families, agent) = (Families::Dual, Some(agent_binary()));
        let sandbox = Sandbox::start(Options { families, agent, agent_arguments: Vec::new(), recorded: true }).unwrap();
        proxy::start(sandbox.node()).unwrap();
        let mut base = ["client", "free", "blue", "green"].map(|name| pod(name, false)).to_vec();
        base.push(pod("host", true));
        // For hosts outside to be there: the sandbox makes those that policies name. This one selects nobody.
        let hosts: Vec<Value> = OUTSIDE.iter().flatten().map(|host| block(&host.parse().unwrap())).collect();
        base.push(policy(
            "hosts",
            &json!({
                "podSelector": { "matchLabels": { "app": "nobody" } }, "policyTypes": ["Egress"],
                "egress": [{ "to": hosts, "ports": [{ "port": TARGET }, { "port": TARGET, "protocol": "UDP" }] }],
            }),
        ));
        let mut site = Self { sandbox, base, services: Vec::new(), policies: Vec::new() };
        site.publish();
        site
    }

    fn publish(&mut self) {
        let objects = [&self.base[..], &self.services[..], &self.policies[..]].concat();
        assert_eq!(self.sandbox.arrange(&objects).unwrap(), []);
        self.sandbox.publish(Policies::InForce).unwrap();
    }

    /// Puts this policy in force instead of others.
    pub(crate) fn set_policy(&mut self, spec: &Value) {
        self.policies = vec![policy("p", spec)];
        self.publish();
    }

    /// Lets IPVS serve a Service at these addresses, one of each family, and the agent know of it if it is declared.
    pub(crate) fn expose(
        &mut self,
        addresses: [&str; 2],
        protocol: Protocol,
        backends: &[[IpAddr; 2]],
        is_declared: bool,
    ) {
        for (family, address) in addresses.into_iter().enumerate() {
            let at = SocketAddr::new(address.parse().unwrap(), PORT);
            let backends = backends.iter().map(|pair| SocketAddr::new(pair[family], TARGET)).collect();
            proxy::expose(self.sandbox.node(), &Virtual { at, protocol, backends }).unwrap();
        }
        if is_declared {
            self.services.extend(service(addresses, protocol, backends));
            self.publish();
        }
    }

    /// A pod's addresses, IPv4 first.
    pub(crate) fn pod(&self, name: &str) -> [IpAddr; 2] {
        let pod = &self.sandbox.cluster().pods[&ObjectName::new(NAMESPACE, name)];
        [pod.addresses[0], pod.addresses[1]]
    }

    pub(crate) fn gateways(&self) -> Vec<IpAddr> {
        self.sandbox.node().gateways()
    }

    /// Lets hosts outside know the way to addresses of Services.
    pub(crate) fn announce(&self, addresses: [&str; 2]) {
        let outside = self.sandbox.node().outside().network().place();
        for (address, router) in addresses.into_iter().zip(self.sandbox.node().addresses()) {
            let mut command = std::process::Command::new("ip");
            command.args(["route", "add", address, "via", &router.to_string(), "dev", "uplink"]);
            outside.prepare(&mut command).unwrap();
            assert!(command.status().unwrap().success(), "a route to {address}");
        }
    }

    /// Opens many connections from a pod to a Service's address. Fails unless exactly those to allowed backends are
    /// answered, and all backends are among those picked.
    pub(crate) fn judge(
        &self,
        from: &str,
        to: &str,
        protocol: Protocol,
        backends: &[[IpAddr; 2]],
        allowed: &[[IpAddr; 2]],
    ) {
        let to = SocketAddr::new(to.parse().unwrap(), PORT);
        let family = usize::from(to.is_ipv6());
        let namespace = self.sandbox.namespace(&End::Pod(ObjectName::new(NAMESPACE, from))).unwrap();
        self.judge_from(namespace, self.pod(from)[family], to, protocol, backends, allowed);
    }

    /// The same from a host outside.
    pub(crate) fn judge_outside(&self, source: &str, to: &str, backends: &[[IpAddr; 2]], allowed: &[[IpAddr; 2]]) {
        let to = SocketAddr::new(to.parse().unwrap(), PORT);
        let outside = self.sandbox.node().outside().network();
        self.judge_from(outside, source.parse().unwrap(), to, Protocol::Tcp, backends, allowed);
    }

    fn judge_from(
        &self,
        from: &Namespace,
        source: IpAddr,
        to: SocketAddr,
        protocol: Protocol,
        backends: &[[IpAddr; 2]],
        allowed: &[[IpAddr; 2]],
    ) {
        let family = usize::from(to.is_ipv6());
        let node = self.sandbox.node().place();
        let tally = backends::tally((&node, Rewriter::Ipvs), from, source, to, protocol, MANY).unwrap();
        let is_allowed = |backend: SocketAddr| allowed.iter().any(|pair| pair[family] == backend.ip());
        let wrong = tally.wrong(is_allowed) + tally.untracked;
        cells::report("ipvs", cells::family_of(&to.ip()), "ipvs", MANY, wrong).unwrap();
        assert_eq!(wrong, 0, "{source} to {to}: allowed {allowed:?}, {tally:?}");
        let Tally { answered, silent, untracked: _ } = &tally;
        let mut picked: Vec<IpAddr> = answered.keys().chain(silent.keys()).map(SocketAddr::ip).collect();
        picked.sort_unstable();
        let mut expected: Vec<IpAddr> = backends.iter().map(|pair| pair[family]).collect();
        expected.sort_unstable();
        assert_eq!(picked, expected, "{source} to {to}: {tally:?}");
    }

    /// Packets that the agent has dropped for a reason.
    pub(crate) fn dropped(&mut self, reason: &str) -> u64 {
        let all = self.sandbox.agent().unwrap().dropped().unwrap();
        all.iter().filter(|one| one.reason == reason).map(|one| one.packets).sum()
    }
}

fn pod(name: &str, on_node: bool) -> Value {
    let ports = ["TCP", "UDP", "SCTP"].map(|protocol| json!({ "containerPort": TARGET, "protocol": protocol }));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": NAMESPACE, "name": name, "labels": { "app": name } },
        "spec": { "hostNetwork": on_node, "containers": [{ "name": "main", "ports": ports }] },
    })
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": NAMESPACE, "name": name }, "spec": spec,
    })
}

/// A peer of one address.
pub(crate) fn block(address: &IpAddr) -> Value {
    json!({ "ipBlock": { "cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }) } })
}

/// The peers of all addresses of some.
pub(crate) fn blocks(pairs: &[[IpAddr; 2]]) -> Vec<Value> {
    pairs.iter().flatten().map(block).collect()
}

/// A Service and its slices.
fn service(addresses: [&str; 2], protocol: Protocol, backends: &[[IpAddr; 2]]) -> Vec<Value> {
    let name = format!("s-{}-{}", addresses[0].replace('.', "-"), protocol.name().to_lowercase());
    let (protocol, family) = (protocol.name(), |at: usize| ["IPv4", "IPv6"][at]);
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": NAMESPACE, "name": name },
        "spec": {
            "type": "ClusterIP", "clusterIP": addresses[0], "clusterIPs": addresses,
            "ports": [{ "name": "main", "protocol": protocol, "port": PORT, "targetPort": TARGET }],
        },
    })];
    objects.extend((0..2).map(|at| {
        let endpoint = |pair: &[IpAddr; 2]| json!({ "addresses": [pair[at]], "conditions": { "ready": true } });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": NAMESPACE, "name": format!("{name}-{at}"),
                "labels": { "kubernetes.io/service-name": name },
            },
            "addressType": family(at), "endpoints": backends.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{ "name": "main", "protocol": protocol, "port": TARGET }],
        })
    }));
    objects
}
