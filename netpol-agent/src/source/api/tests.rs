//! The watch loop against an API server of our own, on loopback: each request takes the next reply of a script.

use std::collections::{BTreeMap, VecDeque};

use futures::stream::{self, BoxStream, StreamExt as _};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;

type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// What the server does with a request.
enum Reply {
    Json(u16, Value),
    /// Events of a watch, then the end of the response.
    Events(Vec<Value>),
    /// Events of a watch, then silence.
    Hold(Vec<Value>),
    /// A line that is no event.
    Line(&'static str),
    /// No answer at all.
    Hang,
}

#[derive(Default)]
struct Script {
    lists: VecDeque<Reply>,
    watches: VecDeque<Reply>,
    /// Queries of the requests for pods.
    lists_seen: Vec<BTreeMap<String, String>>,
    watches_seen: Vec<BTreeMap<String, String>>,
}

impl Script {
    /// Pods by script; everything else is an empty list and a silent watch, as is what the script does not say.
    fn next(&mut self, path: &str, query: &str) -> Reply {
        let query: BTreeMap<String, String> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let is_watch = query.contains_key("watch");
        let (replies, seen) = if is_watch {
            (&mut self.watches, &mut self.watches_seen)
        } else {
            (&mut self.lists, &mut self.lists_seen)
        };
        let mut reply = None;
        if path == "/api/v1/pods" {
            seen.push(query);
            reply = replies.pop_front();
        }
        reply.unwrap_or_else(|| if is_watch { Reply::Hold(vec![]) } else { page("1", "", vec![]) })
    }
}

fn lines(events: Vec<Value>) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
    stream::iter(events).map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))))
}

async fn respond(reply: Reply) -> Response<Body> {
    let (status, body): (u16, BoxStream<'static, _>) = match reply {
        Reply::Json(status, value) => (status, lines(vec![value]).boxed()),
        Reply::Events(events) => (200, lines(events).boxed()),
        Reply::Hold(events) => (200, lines(events).chain(stream::pending()).boxed()),
        Reply::Line(line) => (200, stream::iter([Ok(Frame::data(Bytes::from(line)))]).chain(stream::pending()).boxed()),
        Reply::Hang => std::future::pending().await,
    };
    let mut response = Response::new(StreamBody::new(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("status");
    response
}

struct Server {
    script: Arc<Mutex<Script>>,
    state: Arc<State>,
    events: mpsc::Receiver<Envelope>,
}

impl Server {
    /// A server that answers for pods as told, and a source that watches it.
    async fn start(lists: Vec<Reply>, watches: Vec<Reply>) -> Self {
        // Long enough to be no part of the outcome, however busy the machine is.
        Self::start_with_limit(Duration::from_secs(60), lists, watches).await
    }

    /// The same, with a time limit for answers.
    async fn start_with_limit(request: Duration, lists: Vec<Reply>, watches: Vec<Reply>) -> Self {
        let script = Script { lists: lists.into(), watches: watches.into(), ..Script::default() };
        let script = Arc::new(Mutex::new(script));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        tokio::spawn(accept(listener, Arc::clone(&script)));
        let mut config = kube::Config::new(url.parse().expect("URL"));
        config.default_retry = false;
        let client = Client::try_from(config).expect("client");
        let timing = Timing {
            request,
            watch_least: Duration::from_secs(60),
            backoff: Duration::from_millis(1),
            ..Timing::default()
        };
        let (sender, events) = mpsc::channel(16);
        let state = State::new();
        tokio::spawn(run(client, timing, sender, Arc::clone(&state)));
        Self { script, state, events }
    }

    /// The next event about pods, in short.
    async fn next(&mut self) -> String {
        loop {
            let event = tokio::time::timeout(Duration::from_secs(60), self.events.recv()).await;
            let Envelope { event, .. } = event.expect("an event in time").expect("an event");
            if let Some(short) = short(&event) {
                return short;
            }
        }
    }

    async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.next().await, *expected);
        }
    }

    fn watch_errors(&self) -> u64 {
        let metrics = self.state.render().expect("metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix("netpol_watch_errors_total{kind=\"Pod\"} "));
        line.map_or(0, |count| count.parse().expect("number"))
    }
}

async fn accept(listener: TcpListener, script: Arc<Mutex<Script>>) {
    loop {
        let (stream, _) = listener.accept().await.expect("accept");
        let script = Arc::clone(&script);
        tokio::spawn(async move {
            let service = service_fn(|request: hyper::Request<Incoming>| {
                let uri = request.uri();
                let reply = script.lock().next(uri.path(), uri.query().unwrap_or_default());
                async { Ok::<_, Infallible>(respond(reply).await) }
            });
            // An error is a client that went away, which is what clients do here.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn short(event: &Event) -> Option<String> {
    let at = |progress: &Option<String>| progress.as_ref().map_or(String::new(), |version| format!(" @{version}"));
    match event {
        Event::Upsert { object, progress } if object.kind() == Kind::Pod => {
            Some(format!("{}{}", object.name(), at(progress)))
        }
        Event::Removed { kind: Kind::Pod, name, progress } => Some(format!("-{name}{}", at(progress))),
        Event::Rejected { kind: Kind::Pod, rejected, progress, .. } => {
            let name = rejected.name.as_ref().map_or_else(|| "?".into(), ToString::to_string);
            Some(format!("!{name} {}{}", rejected.field, at(progress)))
        }
        Event::Listed { kind: Kind::Pod, names, version } => {
            let names: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
            Some(format!("all [{}] @{version}", names.join(" ")))
        }
        Event::Bookmark { kind: Kind::Pod, version } => Some(format!("bookmark @{version}")),
        Event::Unattributed(_) => panic!("{event:?}"),
        Event::Upsert { .. }
        | Event::Removed { .. }
        | Event::Rejected { .. }
        | Event::Listed { .. }
        | Event::Bookmark { .. } => None,
    }
}

fn pod(name: &str, version: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": name, "resourceVersion": version,
            "managedFields": [{ "manager": "kubelet" }],
        },
        "spec": { "containers": [] },
        "status": { "phase": "Running" },
    })
}

fn bad_pod(name: &str, version: &str) -> Value {
    let mut pod = pod(name, version);
    pod["metadata"]["labels"] = json!(7);
    pod
}

fn page(version: &str, next: &str, items: Vec<Value>) -> Reply {
    let list = json!({
        "kind": "PodList", "apiVersion": "v1",
        "metadata": { "resourceVersion": version, "continue": next },
        "items": items,
    });
    Reply::Json(200, list)
}

fn failure(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": "no", "code": code })
}

fn change(action: &str, object: Value) -> Value {
    json!({ "type": action, "object": object })
}

#[tokio::test]
async fn pages_make_one_list() {
    let mut server = Server::start(
        vec![page("10", "more", vec![pod("a", "3"), pod("b", "4")]), page("10", "", vec![pod("c", "2")])],
        vec![],
    )
    .await;
    server.expect(&["shop/a", "shop/b", "shop/c", "all [a b c] @10"]).await;
    let script = server.script.lock();
    let [first, second] = &script.lists_seen[..] else { panic!("{:?}", script.lists_seen) };
    assert_eq!((first.get("limit").map(String::as_str), first.get("resourceVersion")), (Some("500"), None));
    assert_eq!(second.get("continue").map(String::as_str), Some("more"));
}

#[tokio::test]
async fn a_watch_continues_where_the_list_ended_and_is_short() {
    let bookmark = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "resourceVersion": "14" } });
    let events = vec![
        change("ADDED", pod("a", "11")),
        change("MODIFIED", pod("a", "12")),
        change("DELETED", pod("a", "13")),
        change("BOOKMARK", bookmark),
    ];
    let mut server = Server::start(vec![page("10", "", vec![])], vec![Reply::Events(events)]).await;
    server.expect(&["all [] @10", "shop/a @11", "shop/a @12", "-shop/a @13", "bookmark @14"]).await;
    // The end of a watch is no failure; the next one starts at the last version.
    while server.script.lock().watches_seen.len() < 2 {
        tokio::task::yield_now().await;
    }
    let script = server.script.lock();
    let versions: Vec<&str> = script.watches_seen.iter().map(|query| query["resourceVersion"].as_str()).collect();
    assert_eq!(versions, ["10", "14"]);
    let limit: u64 = script.watches_seen[0]["timeoutSeconds"].parse().expect("seconds");
    assert!((1..=60).contains(&limit), "{limit}");
    assert_eq!(script.watches_seen[0]["allowWatchBookmarks"], "true");
    assert_eq!(script.lists_seen.len(), 1);
    drop(script);
    assert_eq!(server.watch_errors(), 0);
}

#[tokio::test]
async fn an_unreadable_object_is_skipped_and_the_stream_goes_on() {
    let mut server = Server::start(
        vec![page("10", "", vec![bad_pod("a", "1"), pod("b", "2"), json!("not an object")])],
        vec![Reply::Hold(vec![change("MODIFIED", bad_pod("b", "11")), change("ADDED", pod("c", "12"))])],
    )
    .await;
    // The unreadable one is on the list, so that nobody takes it for deleted.
    server.expect(&["!shop/a metadata.labels", "shop/b"]).await;
    assert!(server.next().await.starts_with("!? "));
    server.expect(&["all [a b] @10", "!shop/b metadata.labels @11", "shop/c @12"]).await;
}

#[tokio::test]
async fn a_version_that_is_too_old_leads_to_a_new_list() {
    for gone in [
        Reply::Hold(vec![change("ERROR", failure(410, "Expired"))]),
        Reply::Json(410, failure(410, "Expired")),
        // After a restore from a backup.
        Reply::Json(
            504,
            json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Timeout", "code": 504,
                "message": "Too large resource version: 10, current: 3",
            }),
        ),
    ] {
        let lists = vec![page("10", "", vec![pod("a", "1"), pod("b", "2")]), page("20", "", vec![pod("b", "2")])];
        let mut server = Server::start(lists, vec![gone]).await;
        server.expect(&["shop/a", "shop/b", "all [a b] @10", "shop/b", "all [b] @20"]).await;
        assert_eq!(server.watch_errors(), 1);
    }
}

#[tokio::test]
async fn a_list_that_expires_between_pages_starts_over() {
    let lists = vec![
        page("10", "more", vec![pod("a", "1")]),
        Reply::Json(410, failure(410, "Expired")),
        page("20", "", vec![pod("b", "2")]),
    ];
    let mut server = Server::start(lists, vec![]).await;
    server.expect(&["shop/a", "shop/b", "all [b] @20"]).await;
}

#[tokio::test]
async fn a_watch_that_breaks_is_resumed_at_the_last_version() {
    let watches = vec![
        Reply::Events(vec![change("ADDED", pod("a", "11"))]),
        Reply::Json(503, failure(503, "ServiceUnavailable")),
        Reply::Hold(vec![change("ADDED", pod("b", "12"))]),
    ];
    let mut server = Server::start(vec![page("10", "", vec![])], watches).await;
    server.expect(&["all [] @10", "shop/a @11", "shop/b @12"]).await;
    let script = server.script.lock();
    let versions: Vec<&str> = script.watches_seen.iter().map(|query| query["resourceVersion"].as_str()).collect();
    assert_eq!(versions, ["10", "11", "11"]);
    assert_eq!(script.lists_seen.len(), 1);
    drop(script);
    assert_eq!(server.watch_errors(), 1);
}

#[tokio::test]
async fn a_line_that_is_no_event_leads_to_a_new_list() {
    for line in ["{\"type\":\"ADDED\"}\n", "garbage\n", "{}\n", "[]\n"] {
        let lists = vec![page("10", "", vec![pod("a", "1")]), page("20", "", vec![])];
        let mut server = Server::start(lists, vec![Reply::Line(line)]).await;
        server.expect(&["shop/a", "all [a] @10", "all [] @20"]).await;
        assert_eq!(server.watch_errors(), 1);
    }
}

#[tokio::test]
async fn a_list_that_is_never_answered_is_asked_for_again() {
    let lists = vec![Reply::Hang, page("10", "", vec![pod("a", "1")])];
    let mut server = Server::start_with_limit(Duration::from_millis(500), lists, vec![]).await;
    server.expect(&["shop/a", "all [a] @10"]).await;
    assert!(server.watch_errors() >= 1);
}

#[tokio::test]
async fn a_refused_list_is_counted_and_tried_again() {
    let lists = vec![
        Reply::Json(403, failure(403, "Forbidden")),
        Reply::Json(500, json!("no status")),
        Reply::Json(200, json!({ "items": 1 })),
        page("", "", vec![]),
        page("10", "", vec![]),
    ];
    let mut server = Server::start(lists, vec![]).await;
    server.expect(&["all [] @10"]).await;
    assert_eq!(server.watch_errors(), 4);
}

#[tokio::test]
async fn a_watch_that_ends_at_once_is_a_failure_lest_we_spin() {
    let watches =
        vec![Reply::Events(vec![]), Reply::Events(vec![]), Reply::Hold(vec![change("ADDED", pod("a", "11"))])];
    let mut server = Server::start(vec![page("10", "", vec![])], watches).await;
    server.expect(&["all [] @10", "shop/a @11"]).await;
    assert_eq!(server.script.lock().lists_seen.len(), 1);
    assert_eq!(server.watch_errors(), 2);
}
