//! What is known of kernels.

use netpol_suites::kernel::{Feature, Version, has, is_built};

#[test]
fn versions_are_compared_by_number() {
    let parse = |release| Version::parse(release).expect("a version");
    assert!(parse("5.10.0-32-cloud-amd64") < Version(5, 16));
    assert!(parse("6.12.107+deb13-cloud-amd64") > parse("6.6.1"));
    assert_eq!(parse("7.3.4+deb13-cloud-amd64"), Version(7, 3));
    assert_eq!(Version::parse("linux"), None);
}

#[test]
fn an_option_is_built_in_or_as_a_module() {
    let text = "CONFIG_IP_SCTP=m\nCONFIG_IP_SCTP_EXTRA=n\n# CONFIG_VETH is not set\nCONFIG_BRIDGE=y\n";
    assert!(is_built(text, "CONFIG_IP_SCTP") && is_built(text, "CONFIG_BRIDGE"));
    assert!(!is_built(text, "CONFIG_VETH") && !is_built(text, "CONFIG_IP_SCTP_EXTRA"));
}

#[test]
fn each_feature_is_there_where_it_is_promised() {
    for feature in Feature::ALL {
        println!("{feature:?}: {}: {}", feature.since(), has(feature));
    }
}
