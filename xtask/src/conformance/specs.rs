//! Upstream's specs: which there are, which are to be run, and how one of them ended. All of it is read from the
//! reports that Ginkgo writes as JSON.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use netpol_testbed::kernel;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The label of specs whose connections are SCTP's. Two others have SCTP in their names and use TCP only.
const SCTP: &str = "Feature:SCTPConnectivity";

/// How many parts [`Third`] divides the specs into.
const THIRDS: u8 = 3;

/// A test of the suite.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spec {
    /// Its full text: what its containers and the spec itself are called.
    pub(super) name: String,
    labels: BTreeSet<String>,
}

impl Spec {
    /// Whether it needs SCTP sockets.
    pub(super) fn needs_sctp(&self) -> bool {
        self.labels.contains(SCTP)
    }

    /// A regular expression that this spec alone matches. Ginkgo matches the suite's description and the full text.
    pub(super) fn focus(&self, suite: &str) -> String {
        let mut pattern = String::from("^");
        for letter in suite.chars().chain(" ".chars()).chain(self.name.chars()) {
            // Of Go's syntax (package regexp/syntax), every ASCII punctuation mark may be escaped, and no letter.
            if letter.is_ascii_punctuation() {
                pattern.push('\\');
            }
            pattern.push(letter);
        }
        pattern.push('$');
        pattern
    }

    /// The third it is in, 1 to 3: by its name alone, so that a new spec moves no other one.
    fn third(&self) -> u8 {
        // Two bytes and not another number of them, since they divide the specs of 1.36 most evenly: 16, 18 and 16.
        let sum: u16 = Sha256::digest(self.name.as_bytes()).iter().take(2).map(|byte| u16::from(*byte)).sum();
        u8::try_from(sum % u16::from(THIRDS)).unwrap_or_default() + 1
    }
}

/// Fails if these are not as many specs as the release has, in all and with SCTP sockets.
///
/// # Errors
/// In that case, with the numbers.
pub(super) fn census(specs: &[Spec], expected: (usize, usize)) -> Result<()> {
    let found = (specs.len(), specs.iter().filter(|spec| spec.needs_sctp()).count());
    ensure!(
        found == expected,
        "the suite has {} specs, {} of them {SCTP}, and should have {} and {}",
        found.0,
        found.1,
        expected.0,
        expected.1
    );
    Ok(())
}

/// What a kernel lacks that a spec needs: the only reason for which a spec is not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    SctpSockets,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SctpSockets => write!(f, "{SCTP}: this kernel is built without {}", kernel::IP_SCTP.name),
        }
    }
}

/// Which specs are to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(super) struct Selection {
    /// Only specs with this text in their names
    #[arg(long, value_name = "TEXT")]
    focus: Option<String>,
    /// Only this third of the specs: 1, 2 or 3
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(THIRDS)))]
    third: Option<u8>,
}

impl Selection {
    /// Whether a spec is one of them.
    pub(super) fn contains(&self, spec: &Spec) -> bool {
        let Self { focus, third } = self;
        focus.as_ref().is_none_or(|text| spec.name.contains(text.as_str()))
            && third.is_none_or(|third| spec.third() == third)
    }
}

impl fmt::Display for Selection {
    /// As it is given; empty for all specs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { focus, third } = self;
        let focus = focus.as_ref().map(|text| format!("--focus {text:?}"));
        let third = third.map(|third| format!("--third {third}"));
        f.write_str(&focus.into_iter().chain(third).collect::<Vec<_>>().join(" "))
    }
}

/// How a spec ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Passed,
    /// With what Ginkgo says of it, and the last of what the spec printed.
    Failed {
        message: String,
        printed: String,
    },
    /// Not run, or given up by the spec itself, with the reason.
    Skipped(String),
}

/// A report of Ginkgo's (`types.Report` of its module, v2): one suite.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    suite_description: String,
    spec_reports: Option<Vec<SpecReport>>,
}

/// Go writes an empty list as null or leaves it out.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    container_hierarchy_labels: Option<Vec<Option<Vec<String>>>>,
    leaf_node_type: String,
    leaf_node_text: Option<String>,
    leaf_node_labels: Option<Vec<String>>,
    state: String,
    failure: Option<Failure>,
    captured_ginkgo_writer_output: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: Option<String>,
    forwarded_panic: Option<String>,
    location: Option<Location>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Location {
    file_name: Option<String>,
    line_number: Option<u64>,
}

impl SpecReport {
    /// Nodes such as BeforeSuite are in reports too.
    fn is_spec(&self) -> bool {
        self.leaf_node_type == "It"
    }

    fn spec(&self) -> Spec {
        let containers = self.container_hierarchy_texts.iter().flatten();
        let texts: Vec<&str> = containers.chain(&self.leaf_node_text).map(String::as_str).collect();
        let labels = self.container_hierarchy_labels.iter().flatten().flatten().flatten();
        let labels = labels.chain(self.leaf_node_labels.iter().flatten()).cloned().collect();
        Spec { name: texts.join(" "), labels }
    }

    fn message(&self) -> String {
        let Some(Failure { message, forwarded_panic, location }) = &self.failure else { return self.state.clone() };
        let mut text = message.clone().unwrap_or_else(|| self.state.clone());
        if let Some(panic) = forwarded_panic {
            text = format!("{text}: {panic}");
        }
        if let Some(Location { file_name: Some(file), line_number: Some(line) }) = location {
            text = format!("{text} ({file}:{line})");
        }
        text
    }
}

fn parse(report: &[u8]) -> Result<Report> {
    let reports: Vec<Report> = serde_json::from_slice(report).context("Ginkgo's report")?;
    let [report] = <[Report; 1]>::try_from(reports)
        .map_err(|reports| anyhow::anyhow!("Ginkgo's report is of {} suites", reports.len()))?;
    Ok(report)
}

/// The suite's description and all of its specs, by name, from the report of a dry run.
///
/// # Errors
/// It is no such report, it has no specs, or two of the same name.
pub(super) fn listed(report: &[u8]) -> Result<(String, Vec<Spec>)> {
    let Report { suite_description, spec_reports } = parse(report)?;
    let mut specs: Vec<Spec> =
        spec_reports.iter().flatten().filter(|report| report.is_spec()).map(SpecReport::spec).collect();
    specs.sort();
    if specs.is_empty() {
        bail!("the suite has no specs");
    }
    for pair in specs.windows(2) {
        if let [one, other] = pair
            && one.name == other.name
        {
            bail!("two specs have the name {}", one.name);
        }
    }
    Ok((suite_description, specs))
}

/// How a spec ended, from the report of a run that was told to run it alone; none if it says nothing of it.
///
/// # Errors
/// It is no report of Ginkgo's.
pub(super) fn ended(report: &[u8], spec: &Spec) -> Result<Option<End>> {
    /// How much of a failed spec's output is shown: the policy's effect as a matrix is at its end.
    const LINES: usize = 40;
    /// Where the lines come from that say how each command is executed in a pod, three for each probe.
    const EXECUTION: &str = " exec_util.go:";
    let reports = parse(report)?.spec_reports.unwrap_or_default();
    // A failure outside of all specs (BeforeSuite, ReportAfterSuite) would make its result worthless.
    if let Some(node) = reports.iter().find(|report| !report.is_spec() && report.state != "passed") {
        return Ok(Some(End::Failed {
            message: format!("{}: {}", node.leaf_node_type, node.message()),
            printed: String::new(),
        }));
    }
    let Some(report) = reports.iter().find(|report| report.is_spec() && report.spec().name == spec.name) else {
        return Ok(None);
    };
    Ok(Some(match report.state.as_str() {
        "passed" => End::Passed,
        "skipped" | "pending" => End::Skipped(report.message()),
        // failed, aborted, panicked, interrupted, timedout, and what a later Ginkgo may add.
        _ => {
            let output = report.captured_ginkgo_writer_output.as_deref().unwrap_or_default();
            let is_told = |line: &&str| !line.trim().is_empty() && !line.contains(EXECUTION);
            let lines: Vec<&str> = output.lines().filter(is_told).collect();
            let printed = lines[lines.len().saturating_sub(LINES)..].join("\n");
            End::Failed { message: report.message(), printed }
        }
    }))
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;

    fn spec(text: &str, labels: &[&str], state: &str) -> Value {
        json!({
            "ContainerHierarchyTexts": ["[sig-network] Netpol", "NetworkPolicy"],
            "ContainerHierarchyLabels": [["sig-network"], null],
            "LeafNodeType": "It", "LeafNodeText": text, "LeafNodeLabels": labels, "State": state,
        })
    }

    fn report(specs: &[Value]) -> Vec<u8> {
        json!([{ "SuiteDescription": "netpol", "SpecReports": specs }]).to_string().into_bytes()
    }

    pub(in super::super) fn named(name: &str) -> Spec {
        Spec { name: name.to_owned(), labels: BTreeSet::new() }
    }

    #[test]
    fn specs_that_need_sctp_are_known_by_their_label_and_not_by_their_name() {
        let report = report(&[
            spec("should not mistake SCTP", &["Feature:NetworkPolicy"], "skipped"),
            spec("should enforce ports", &["Feature:NetworkPolicy", SCTP], "skipped"),
            json!({ "LeafNodeType": "BeforeSuite", "State": "passed" }),
        ]);
        let (suite, specs) = listed(&report).unwrap();
        let needs: Vec<bool> = specs.iter().map(Spec::needs_sctp).collect();
        assert_eq!((suite.as_str(), needs), ("netpol", vec![true, false]));
    }

    #[test]
    fn a_suite_with_a_spec_too_few_or_with_another_label_is_refused() {
        let of = |specs: &[Value]| listed(&report(specs)).unwrap().1;
        let whole = of(&[spec("a", &[], "passed"), spec("b", &[SCTP], "passed")]);
        assert!(census(&whole, (2, 1)).is_ok());
        assert!(census(&whole[..1], (2, 1)).is_err());
        let relabelled = of(&[spec("a", &[], "passed"), spec("b", &[], "passed")]);
        let said = census(&relabelled, (2, 1)).unwrap_err().to_string();
        assert!(said.contains("has 2 specs, 0 of them"), "{said}");
    }

    #[test]
    fn an_empty_suite_and_two_specs_of_one_name_are_refused() {
        assert!(listed(&report(&[])).is_err());
        assert!(listed(br#"[{"SuiteDescription": "netpol", "SpecReports": null}]"#).is_err());
        let twice = [spec("a", &[], "passed"), spec("a", &[], "passed")];
        assert!(listed(&report(&twice)).unwrap_err().to_string().contains("two specs"));
    }

    #[test]
    fn a_focus_matches_the_whole_text_and_takes_nothing_in_it_for_syntax() {
        let focus = named("[sig] a 'b' (c.d)").focus("netpol");
        assert_eq!(focus, r"^netpol \[sig\] a \'b\' \(c\.d\)$");
    }

    #[test]
    fn each_spec_is_in_exactly_one_third_whatever_others_there_are() {
        let third = |third| Selection { focus: None, third: Some(third) };
        let specs: Vec<Spec> = (0..60).map(|number| named(&format!("spec {number}"))).collect();
        let mut sizes = [0; 3];
        for spec in &specs {
            let of = [1, 2, 3].map(|number| third(number).contains(spec));
            assert_eq!(of.iter().filter(|is_in| **is_in).count(), 1, "{}", spec.name);
            for (size, is_in) in sizes.iter_mut().zip(of) {
                *size += usize::from(is_in);
            }
        }
        assert!(sizes.iter().all(|size| *size > 10), "{sizes:?}");
    }

    #[test]
    fn a_focus_and_a_third_both_have_to_fit() {
        let spec = named("should deny egress");
        let focus = |text: &str, third| Selection { focus: Some(text.to_owned()), third };
        assert!(focus("deny", None).contains(&spec) && !focus("allow", None).contains(&spec));
        assert!(focus("deny", Some(spec.third())).contains(&spec));
        assert!(!focus("deny", Some(spec.third() % THIRDS + 1)).contains(&spec));

        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            selection: Selection,
        }
        assert!(Line::try_parse_from(["", "--third", "4"]).is_err());
        assert_eq!(Line::parse_from(["", "--third", "2"]).selection.third, Some(2));
    }

    #[test]
    fn a_failed_spec_tells_where_and_the_last_that_it_printed() {
        let mut failed = spec("fails", &[], "failed");
        failed["Failure"] = json!({ "Message": "Had 1 wrong", "Location": { "FileName": "a.go", "LineNumber": 7 } });
        failed["CapturedGinkgoWriterOutput"] = "first\n\nI1 exec_util.go:67] ExecWithOptions\nlast\n".into();
        let bytes = report(&[spec("other", &[], "skipped"), failed]);
        let end = ended(&bytes, &named("[sig-network] Netpol NetworkPolicy fails")).unwrap();
        let expected = End::Failed { message: "Had 1 wrong (a.go:7)".to_owned(), printed: "first\nlast".to_owned() };
        assert_eq!(end, Some(expected));
        assert_eq!(ended(&bytes, &named("another")).unwrap(), None);
    }

    #[test]
    fn a_spec_that_skips_itself_says_why_and_one_of_unknown_state_has_failed() {
        let mut skipped = spec("a", &[], "skipped");
        skipped["Failure"] = json!({ "Message": "needs Windows" });
        let bytes = report(&[skipped, spec("b", &[], "timedout")]);
        let of = |name: &str| ended(&bytes, &named(&format!("[sig-network] Netpol NetworkPolicy {name}"))).unwrap();
        assert_eq!(of("a"), Some(End::Skipped("needs Windows".to_owned())));
        assert!(matches!(of("b"), Some(End::Failed { message, .. }) if message == "timedout"));
    }

    #[test]
    fn a_failure_before_the_specs_fails_the_spec() {
        let before = json!({ "LeafNodeType": "BeforeSuite", "State": "failed", "Failure": { "Message": "no server" } });
        let bytes = report(&[before, spec("a", &[], "passed")]);
        let end = ended(&bytes, &named("[sig-network] Netpol NetworkPolicy a")).unwrap();
        assert!(matches!(end, Some(End::Failed { message, .. }) if message == "BeforeSuite: no server"));
    }
}
