//! What the container runtime recorded about the interfaces that it made.
//!
//! libcni keeps the result of each ADD under `<cache>/results/<network>-<container>-<interface>` (kind `cniCacheV1`,
//! CNI specification, "Cached result"): the arguments of the runtime, among them the pod's UID, and the interfaces and
//! addresses of the result. The file is written after the last plugin has returned, so a veth is seen some time before.

use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

/// One interface of one sandbox, as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub pod: String,
    /// Pod UID.
    pub uid: String,
    /// Name of the host-side interface.
    pub host_interface: String,
    /// Hardware address of the host-side interface, if recorded; tells a reused name from the recorded device.
    pub host_mac: Option<[u8; 6]>,
    /// Addresses of the interface inside the pod.
    pub addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheFile {
    kind: Option<String>,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    result: Option<CniResult>,
}

#[derive(Deserialize)]
struct CniResult {
    #[serde(default)]
    interfaces: Vec<CniInterface>,
    #[serde(default)]
    ips: Vec<CniIp>,
}

#[derive(Deserialize)]
struct CniInterface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct CniIp {
    address: String,
    interface: Option<usize>,
}

/// Reads every record below `cache`. A file that cannot be read or is not a record of a pod is left out: the runtime
/// writes them without a rename, so half of one may be there; the caller looks again.
#[must_use]
pub fn read(cache: &Path) -> Vec<Recorded> {
    let Ok(entries) = std::fs::read_dir(cache.join("results")) else { return Vec::new() };
    let mut recorded = Vec::new();
    for entry in entries.flatten() {
        if let Ok(text) = std::fs::read(entry.path()) {
            recorded.extend(parse(&text));
        }
    }
    recorded
}

fn parse(text: &[u8]) -> Vec<Recorded> {
    let Ok(CacheFile { kind, cni_args, result: Some(result) }) = serde_json::from_slice(text) else {
        return Vec::new();
    };
    if kind.as_deref() != Some("cniCacheV1") {
        return Vec::new();
    }
    let argument =
        |name: &str| cni_args.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap_or_default();
    let (namespace, pod, uid) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"), argument("K8S_POD_UID"));
    if uid.is_empty() || pod.is_empty() {
        return Vec::new();
    }
    // The result of the bridge plugin lists the bridge, the host side, and the pod side: only the last has a sandbox.
    let host_side = |interface: &&CniInterface| interface.sandbox.is_empty() && !interface.name.is_empty();
    let addresses: Vec<IpAddr> = result
        .ips
        .iter()
        .filter(|ip| {
            ip.interface.is_none_or(|index| result.interfaces.get(index).is_none_or(|i| !i.sandbox.is_empty()))
        })
        .filter_map(|ip| ip.address.split('/').next()?.parse().ok())
        .collect();
    result
        .interfaces
        .iter()
        .filter(host_side)
        .map(|interface| Recorded {
            namespace: namespace.clone(),
            pod: pod.clone(),
            uid: uid.clone(),
            host_interface: interface.name.clone(),
            host_mac: mac(&interface.mac),
            addresses: addresses.clone(),
        })
        .collect()
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"kind":"cniCacheV1","containerId":"c1","ifName":"eth0","networkName":"cbr0",
        "cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web.v1"],["K8S_POD_UID","u-1"]],
        "result":{"cniVersion":"1.0.0","interfaces":[{"name":"cni0","mac":"aa:aa:aa:aa:aa:aa"},
            {"name":"veth1234","mac":"02:00:00:00:00:0a"},{"name":"eth0","mac":"02:00:00:00:00:0b","sandbox":"/run/netns/x"}],
            "ips":[{"address":"10.244.0.7/24","gateway":"10.244.0.1","interface":2},{"address":"fd00::7/64","interface":2}]}}"#;

    #[test]
    fn a_bridge_result_names_pod_host_interface_and_addresses() {
        let all = parse(RECORD.as_bytes());
        let veth = all.iter().find(|r| r.host_interface == "veth1234").unwrap();
        assert_eq!((veth.namespace.as_str(), veth.pod.as_str(), veth.uid.as_str()), ("shop", "web.v1", "u-1"));
        assert_eq!(veth.host_mac, Some([2, 0, 0, 0, 0, 10]));
        assert_eq!(veth.addresses, ["10.244.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        assert!(all.iter().all(|r| r.host_interface != "eth0"), "the pod's own side is no host interface");
    }

    #[test]
    fn half_a_file_and_other_kinds_are_left_out() {
        assert!(parse(&RECORD.as_bytes()[..RECORD.len() / 2]).is_empty());
        assert!(parse(RECORD.replace("cniCacheV1", "other").as_bytes()).is_empty());
        assert!(parse(RECORD.replace("K8S_POD_UID", "X").as_bytes()).is_empty());
    }
}
