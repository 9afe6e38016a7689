//! What is known of kernels.

use netpol_suites::kernel::verifier::processed;
use netpol_suites::kernel::{Feature, Version, has};
use netpol_testbed::kernel::is_built;

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
fn the_verifiers_last_word_has_the_number_of_its_instructions() {
    let log =
        "func#0 @0\nprocessed 83745 insns (limit 1000000) max_states_per_insn 14 total_states 4193 peak_states 1040\n";
    assert_eq!(processed(log), Some(83_745));
    assert_eq!(processed("verification time 1 usec\n"), None);
}

#[test]
fn each_feature_is_there_where_it_is_promised() {
    for feature in Feature::ALL {
        println!("{feature:?}: {}: {}", feature.since(), has(feature));
    }
}
