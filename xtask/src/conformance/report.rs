//! What a run of upstream's specs says, to people and to programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::runner::Outcome;
use super::specs::{End, Lack, Spec};
use crate::cluster::{self, Options};

/// What came of a run.
pub(super) struct Summary {
    pub(super) options: Options,
    /// The specs that were run, in the order of their names.
    pub(super) outcomes: Vec<Outcome>,
    /// Specs that were not, with what this kernel lacks.
    pub(super) left_out: Vec<(Spec, Lack)>,
    pub(super) seconds: f64,
}

/// A spec and how it ended, in one line.
pub(super) fn line(outcome: &Outcome) -> String {
    let Outcome { spec, end, seconds } = outcome;
    let how = match end {
        End::Passed => "passed",
        End::Failed { .. } => "FAILED",
        End::Skipped(_) => "SKIPPED",
    };
    format!("{how:<7} {seconds:4.0} s  {}", spec.name)
}

impl Summary {
    /// Specs that passed or failed.
    pub(super) fn ran(&self) -> usize {
        self.outcomes.iter().filter(|outcome| !matches!(outcome.end, End::Skipped(_))).count()
    }

    /// Specs that failed.
    pub(super) fn failed(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| matches!(outcome.end, End::Failed { .. }))
    }

    /// What is not as it should be, a line each; empty if all is well.
    pub(super) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for Outcome { spec, end, seconds: _ } in &self.outcomes {
            match end {
                End::Passed => {}
                End::Failed { .. } => complaints.push(format!("failed: {}", spec.name)),
                End::Skipped(reason) => complaints.push(format!("skipped ({reason}): {}", spec.name)),
            }
        }
        complaints
    }

    /// For people: what failed and how, what was skipped and why, and the numbers.
    pub(super) fn text(&self) -> String {
        let Self { options, outcomes, left_out, seconds } = self;
        let mut text = String::new();
        // Writing to a string does not fail.
        let mut put = |line: &str| {
            let _ = writeln!(text, "{line}");
        };
        for outcome in self.failed() {
            put(&line(outcome));
            if let End::Failed { message, printed } = &outcome.end {
                for line in message.lines().chain(printed.lines()) {
                    put(&format!("    {line}"));
                }
            }
        }
        for Outcome { spec, end, .. } in outcomes {
            if let End::Skipped(reason) = end {
                put(&format!("skipped: {}: {reason}", spec.name));
            }
        }
        for (spec, lack) in left_out {
            put(&format!("skipped: {}: {lack}", spec.name));
        }
        let failed = self.failed().count();
        let passed = self.ran() - failed;
        let skipped = outcomes.len() - self.ran() + left_out.len();
        put(&format!("upstream, {options}: {passed} passed, {failed} failed, {skipped} skipped in {seconds:.0} s"));
        for complaint in self.complaints() {
            put(&format!("NOT AS IT SHOULD BE: {complaint}"));
        }
        text
    }

    /// For programs: everything, as one document.
    pub(super) fn json(&self) -> Value {
        let Self { options, outcomes, left_out, seconds } = self;
        let Options { nodes: _, backend, proxy, families } = options;
        let ran = outcomes.iter().map(|Outcome { spec, end, seconds }| match end {
            End::Passed => json!({ "name": spec.name, "result": "passed", "seconds": seconds }),
            End::Failed { message, printed } => json!({
                "name": spec.name, "result": "failed", "seconds": seconds, "message": message, "output": printed,
            }),
            End::Skipped(reason) => json!({ "name": spec.name, "result": "skipped", "reason": reason }),
        });
        let without = left_out
            .iter()
            .map(|(spec, lack)| json!({ "name": spec.name, "result": "skipped", "reason": lack.to_string() }));
        let failed = self.failed().count();
        json!({
            "suite": "upstream",
            "backend": cluster::name(*backend), "proxy": cluster::name(*proxy), "families": cluster::name(*families),
            "passed": self.ran() - failed, "failed": failed,
            "skipped": outcomes.len() - self.ran() + left_out.len(),
            "seconds": seconds, "specs": ran.chain(without).collect::<Vec<_>>(), "complaints": self.complaints(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::specs::tests::named;
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn summary(outcomes: Vec<(&str, End)>) -> Summary {
        let outcomes =
            outcomes.into_iter().map(|(name, end)| Outcome { spec: named(name), end, seconds: 1.0 }).collect();
        let left_out = vec![(named("over SCTP"), Lack::SctpSockets)];
        Summary { options: Line::parse_from(["up"]).options, outcomes, left_out, seconds: 2.0 }
    }

    fn failure() -> End {
        End::Failed { message: "Had 1 wrong".to_owned(), printed: "matrix".to_owned() }
    }

    #[test]
    fn specs_that_the_kernel_cannot_run_are_counted_and_no_complaint() {
        let summary = summary(vec![("a", End::Passed)]);
        assert!(summary.complaints().is_empty());
        let text = summary.text();
        assert!(text.contains("1 passed, 0 failed, 1 skipped"), "{text}");
        assert!(
            text.contains("over SCTP: Feature:SCTPConnectivity: this kernel is built without CONFIG_IP_SCTP"),
            "{text}"
        );
    }

    #[test]
    fn a_spec_that_fails_and_one_that_skips_itself_are_complaints() {
        let summary = summary(vec![("a", End::Passed), ("b", failure()), ("c", End::Skipped("Windows".to_owned()))]);
        assert_eq!(summary.complaints(), ["failed: b", "skipped (Windows): c"]);
        let text = summary.text();
        assert!(text.contains("    Had 1 wrong\n    matrix\n"), "{text}");
        let json = summary.json();
        assert_eq!((&json["passed"], &json["failed"], &json["skipped"]), (&1.into(), &1.into(), &2.into()));
        assert_eq!(json["specs"].as_array().unwrap().len(), 4);
    }
}
