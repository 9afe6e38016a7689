//! Label selectors: what they match, what makes one valid, and a normal form in which equal ones compare equal.
//!
//! [`crate::decode`] builds them from JSON and is the only place that meets invalid ones; everything behind it can
//! evaluate without a way to fail.

use crate::model::{Labels, Operator, Requirement, Selector};
use crate::syntax;

/// What is wrong with a requirement, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidRequirement {
    /// The key is no label key.
    Key(&'static str),
    /// `In` or `NotIn` without values.
    NoValues,
    /// The value of this index is no label value.
    Value(usize, &'static str),
}

impl Requirement {
    /// Whether the labels satisfy it. `NotIn` and `DoesNotExist` also hold where the key is absent (A14).
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let Self { key, operator } = self;
        let value = labels.get(key);
        match operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }

    /// The checks of the API server; value indices are those before normalisation.
    pub fn validate(&self) -> Result<(), InvalidRequirement> {
        let Self { key, operator } = self;
        syntax::label_key(key).map_err(InvalidRequirement::Key)?;
        match operator {
            Operator::In(values) | Operator::NotIn(values) => {
                if values.is_empty() {
                    return Err(InvalidRequirement::NoValues);
                }
                for (index, value) in values.iter().enumerate() {
                    syntax::label_value(value).map_err(|problem| InvalidRequirement::Value(index, problem))?;
                }
            }
            Operator::Exists | Operator::DoesNotExist => {}
        }
        Ok(())
    }
}

impl Selector {
    /// Brings requirements into the normal form.
    #[must_use]
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        for Requirement { key: _, operator } in &mut requirements {
            if let Operator::In(values) | Operator::NotIn(values) = operator {
                values.sort_unstable();
                values.dedup();
            }
        }
        requirements.sort_unstable();
        requirements.dedup();
        Self { requirements }
    }

    /// The selector `{}`.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether it has no requirements.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether the labels satisfy every requirement.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// The checks of the API server; the index is that of the requirement.
    pub fn validate(&self) -> Result<(), (usize, InvalidRequirement)> {
        for (index, requirement) in self.requirements.iter().enumerate() {
            requirement.validate().map_err(|problem| (index, problem))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn requirement(key: &str, operator: Operator) -> Requirement {
        Requirement { key: key.to_owned(), operator }
    }

    fn values(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn a14_every_operator_against_a_matching_another_and_an_absent_value() {
        let (matching, other, absent) = (labels(&[("app", "db")]), labels(&[("app", "web")]), labels(&[("x", "db")]));
        let table = [
            (Operator::In(values(&["db", "cache"])), [true, false, false]),
            (Operator::NotIn(values(&["db", "cache"])), [false, true, true]),
            (Operator::Exists, [true, true, false]),
            (Operator::DoesNotExist, [false, false, true]),
        ];
        for (operator, expected) in table {
            let requirement = requirement("app", operator);
            let got = [&matching, &other, &absent].map(|labels| requirement.matches(labels));
            assert_eq!(got, expected, "{requirement:?}");
        }
    }

    #[test]
    fn a14_all_requirements_must_hold_and_none_select_everything() {
        let both = Selector::new(vec![
            requirement("app", Operator::In(values(&["db"]))),
            requirement("tier", Operator::NotIn(values(&["test"]))),
        ]);
        assert!(both.matches(&labels(&[("app", "db")])));
        assert!(both.matches(&labels(&[("app", "db"), ("tier", "prod")])));
        assert!(!both.matches(&labels(&[("app", "db"), ("tier", "test")])));
        assert!(!both.matches(&labels(&[("tier", "prod")])));
        assert!(Selector::everything().matches(&Labels::new()));
    }

    #[test]
    fn a14_an_empty_label_value_is_a_value() {
        let requirement = requirement("app", Operator::In(values(&[""])));
        assert!(requirement.matches(&labels(&[("app", "")])));
        assert!(!requirement.matches(&labels(&[])));
    }

    #[test]
    fn selectors_that_differ_in_order_and_repetition_only_compare_equal() {
        let one = Selector::new(vec![
            requirement("b", Operator::Exists),
            requirement("a", Operator::In(values(&["2", "1", "2"]))),
            requirement("b", Operator::Exists),
        ]);
        let two = Selector::new(vec![
            requirement("a", Operator::In(values(&["1", "2"]))),
            requirement("b", Operator::Exists),
        ]);
        assert_eq!(one, two);
    }

    #[test]
    fn a14_validation_names_what_is_wrong() {
        let invalid = |requirement: Requirement| requirement.validate().unwrap_err();
        assert!(matches!(invalid(requirement("a b", Operator::Exists)), InvalidRequirement::Key(_)));
        assert_eq!(invalid(requirement("a", Operator::NotIn(vec![]))), InvalidRequirement::NoValues);
        let second = requirement("a", Operator::In(values(&["ok", "not ok"])));
        assert!(matches!(invalid(second.clone()), InvalidRequirement::Value(1, _)));
        let selector = Selector { requirements: vec![requirement("a", Operator::Exists), second] };
        assert!(matches!(selector.validate(), Err((1, InvalidRequirement::Value(1, _)))));
    }
}
