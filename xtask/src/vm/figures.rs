//! What suites say of each kernel, side by side: one table for each kind of figure, one line for each kernel.

use std::fmt::Write as _;

/// Figures of one kernel: what it is, of what, and the value.
pub(super) type Figures = (String, Vec<[String; 3]>);

/// The tables, in the form of Markdown, as documents have them.
pub(super) fn tables(kernels: &[Figures]) -> String {
    let all = || kernels.iter().flat_map(|(_, figures)| figures);
    let mut text = String::new();
    for what in once(all().map(|[what, ..]| what)) {
        let columns = once(all().filter(|[this, ..]| this == what).map(|[_, of, _]| of));
        let header: Vec<&str> = columns.iter().map(|of| of.as_str()).collect();
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {what} | {} |\n|---|{}", header.join(" | "), "---|".repeat(header.len()));
        for (kernel, figures) in kernels {
            let value = |of: &String| {
                let found = figures.iter().rfind(|[this, column, _]| (this, column) == (what, of));
                found.map_or("?", |[_, _, value]| value.as_str())
            };
            let values: Vec<&str> = columns.iter().map(|of| value(of)).collect();
            let _ = writeln!(text, "| {kernel} | {} |", values.join(" | "));
        }
    }
    text
}

/// Each of them once, in the order in which they come.
fn once<'a>(all: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut seen: Vec<&String> = Vec::new();
    for one in all {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_figure_is_a_table_with_a_line_for_each_kernel() {
        let figure = |what: &str, of: &str, value: &str| [what, of, value].map(str::to_owned);
        let old = vec![figure("verified", "pod_egress", "100"), figure("kernel", "attached by", "clsact filters")];
        let new = vec![figure("verified", "pod_egress", "90"), figure("verified", "host_egress", "20")];
        let text = tables(&[("5.10.0".to_owned(), old), ("7.3.4".to_owned(), new)]);
        let lines: Vec<&str> = text.lines().collect();
        let first =
            ["| verified | pod_egress | host_egress |", "|---|---|---|", "| 5.10.0 | 100 | ? |", "| 7.3.4 | 90 | 20 |"];
        assert_eq!(lines[..4], first);
        assert_eq!(
            lines[4..],
            ["| kernel | attached by |", "|---|---|", "| 5.10.0 | clsact filters |", "| 7.3.4 | ? |"]
        );
        assert_eq!(tables(&[]), "");
    }
}
