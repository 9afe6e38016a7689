//! What the API server and the network before it do to an agent: watches that end, hang or have lost their history,
//! and a server that is away. Enforcement stays as it was, and catches up.

use serde_json::json;

use crate::enforcement::{allow, shop};
use crate::site::{AGENT, NAMESPACE, Site};
use netpol_testbed::probe::Outcome::{Allow, Deny};

#[test]
fn a_watch_that_is_cut_is_taken_up_where_it_ended() {
    let site = shop();
    site.relay().cut();
    site.assert(&[("web", "db", Allow), ("stranger", "db", Deny)]);
    site.apply(&allow("db", &json!({ "app": "db" }), &json!({ "app": "stranger" })));
    site.assert(&[("web", "db", Deny), ("stranger", "db", Allow)]);
}

#[test]
fn a_watch_that_hangs_is_given_up_and_what_was_missed_is_made_good() {
    let site = shop();
    site.relay().swallow();
    site.apply_only(&allow("db", &json!({ "app": "db" }), &json!({ "app": "stranger" })));
    site.assert(&[("web", "db", Allow), ("stranger", "db", Deny)]);
    // Nothing will ever come on these connections; the agent has to notice by itself.
    site.settle(&[("web", "db", Deny), ("stranger", "db", Allow)]);
}

#[test]
fn changes_whose_history_is_gone_are_found_by_listing_again() {
    let mut site = shop();
    site.apply(&allow("web", &json!({ "app": "web" }), &json!({ "app": "db" })));
    site.assert(&[("stranger", "web", Deny), ("db", "web", Allow)]);

    let lists = |site: &Site| {
        let requests = site.control_plane.requests(AGENT).unwrap();
        requests.iter().filter(|request| request.resource == "networkpolicies" && request.verb == "list").count()
    };
    let before = lists(&site);

    // While the agent hears nothing, one policy goes, one changes and one comes; then the server forgets how.
    site.relay().silence(true);
    site.admin().delete(Some(NAMESPACE), "networkpolicy", "web").unwrap();
    site.apply_only(&allow("db", &json!({ "app": "db" }), &json!({ "app": "stranger" })));
    site.apply_only(&allow("stranger", &json!({ "app": "stranger" }), &json!({ "app": "db" })));
    site.control_plane.kill_api_server();
    site.control_plane.etcd().compact().unwrap();
    site.control_plane.start_api_server().unwrap();
    site.assert(&[("stranger", "web", Deny), ("web", "db", Allow), ("stranger", "db", Deny)]);

    // What was on its way when it fell silent is lost, too.
    site.relay().cut();
    site.relay().silence(false);
    site.settle(&[
        ("stranger", "web", Allow),
        ("web", "db", Deny),
        ("stranger", "db", Allow),
        ("web", "stranger", Deny),
        ("db", "stranger", Allow),
    ]);
    // 410 comes as an event of a stream that begins well; the log shows what it leads to.
    assert!(lists(&site) > before, "the agent has listed the policies again");
}

#[test]
fn while_the_api_server_is_away_enforcement_stays_even_if_the_agent_restarts() {
    let mut site = shop();
    let mut connection = site.open("web", "db");
    site.control_plane.kill_api_server();
    let held = [("web", "db", Allow), ("stranger", "db", Deny), ("stranger", "web", Allow)];
    site.assert(&held);
    site.stop_agent();
    site.assert(&held);
    site.start_agent();
    site.assert(&held);
    assert_eq!(connection.exchange(), Allow);

    site.control_plane.start_api_server().unwrap();
    site.apply(&allow("db", &json!({ "app": "db" }), &json!({ "app": "stranger" })));
    site.assert(&[("web", "db", Deny), ("stranger", "db", Allow)]);
    assert_eq!(connection.exchange(), Deny);
    site.control_plane.check().unwrap();
}
