//! Walking a JSON value with the path kept, so that every error names the exact field.
//!
//! Nulls are treated as Go's decoder treats them, since it is what the API server runs: a null object, list or string
//! is as if it were not there, and a null *item* of a list is the item's zero value.

use std::collections::BTreeMap;

use serde_json::Value;

/// A field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// Such as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub(crate) field: String,
    /// What is wrong.
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Member(&'a str),
    Item(usize),
    Key(&'a str),
}

/// A value and the way to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    value: &'a Value,
    step: Step<'a>,
    parent: Option<&'a Field<'a>>,
}

static NULL: Value = Value::Null;

impl<'a> Field<'a> {
    /// The whole object.
    pub(crate) const fn root(value: &'a Value) -> Self {
        Self { value, step: Step::Root, parent: None }
    }

    /// The value itself.
    pub(crate) const fn value(&self) -> &'a Value {
        self.value
    }

    /// An error about this field.
    pub(crate) fn error(&self, message: impl Into<String>) -> FieldError {
        FieldError { field: self.path(), message: message.into() }
    }

    /// The way here.
    pub(crate) fn path(&self) -> String {
        let mut steps = Vec::new();
        let mut at = Some(self);
        while let Some(field) = at {
            steps.push(field.step);
            at = field.parent;
        }
        let mut path = String::new();
        for step in steps.iter().rev() {
            match step {
                Step::Root => {}
                Step::Member(name) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(name);
                }
                Step::Item(index) => path.push_str(&format!("[{index}]")),
                Step::Key(key) => path.push_str(&format!("[{key}]")),
            }
        }
        path
    }

    /// Whether it is missing or null.
    pub(crate) fn is_absent(&self) -> bool {
        self.value.is_null()
    }

    fn wrong_type(&self, wanted: &str) -> FieldError {
        let got = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.error(format!("must be {wanted}, not {got}"))
    }

    /// A member of this object; an absent one if this is absent itself.
    pub(crate) fn member<'b>(&'b self, name: &'b str) -> Result<Field<'b>, FieldError> {
        let value = match self.value {
            Value::Object(members) => members.get(name).unwrap_or(&NULL),
            Value::Null => &NULL,
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(self.wrong_type("an object"));
            }
        };
        Ok(Field { value, step: Step::Member(name), parent: Some(self) })
    }

    /// The items of this list.
    pub(crate) fn items<'b>(&'b self) -> Result<impl ExactSizeIterator<Item = Field<'b>>, FieldError> {
        let items: &[Value] = match self.value {
            Value::Array(items) => items,
            Value::Null => &[],
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                return Err(self.wrong_type("a list"));
            }
        };
        Ok(items.iter().enumerate().map(move |(index, value)| Field {
            value,
            step: Step::Item(index),
            parent: Some(self),
        }))
    }

    /// The entries of this map, in the order of their keys.
    pub(crate) fn entries<'b>(&'b self) -> Result<Vec<(&'b str, Field<'b>)>, FieldError> {
        match self.value {
            Value::Object(members) => {
                let entry = |(key, value): (&'b String, &'b Value)| {
                    (key.as_str(), Field { value, step: Step::Key(key), parent: Some(self) })
                };
                Ok(members.iter().map(entry).collect())
            }
            Value::Null => Ok(Vec::new()),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Err(self.wrong_type("an object")),
        }
    }

    /// A string, if present.
    pub(crate) fn string(&self) -> Result<Option<&'a str>, FieldError> {
        match self.value {
            Value::String(text) => Ok(Some(text)),
            Value::Null => Ok(None),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => Err(self.wrong_type("a string")),
        }
    }

    /// A string, if present and not empty: most of the API takes both for unset.
    pub(crate) fn filled_string(&self) -> Result<Option<&'a str>, FieldError> {
        Ok(self.string()?.filter(|text| !text.is_empty()))
    }

    /// A boolean; absent is false.
    pub(crate) fn boolean(&self) -> Result<bool, FieldError> {
        match self.value {
            Value::Bool(value) => Ok(*value),
            Value::Null => Ok(false),
            Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                Err(self.wrong_type("a boolean"))
            }
        }
    }

    /// An `int32`, if present. YAML may bring a whole number as a float, which its way to JSON makes an integer.
    pub(crate) fn integer(&self) -> Result<Option<i32>, FieldError> {
        match self.value {
            Value::Number(number) => {
                let whole = match (number.as_i64(), number.as_f64()) {
                    (Some(number), _) => i32::try_from(number).ok(),
                    #[expect(clippy::cast_possible_truncation, reason = "the range is checked in the pattern guard")]
                    (None, Some(number)) if number.fract() == 0.0 && number.abs() <= f64::from(i32::MAX) => {
                        Some(number as i32)
                    }
                    (None, _) => None,
                };
                whole.map(Some).ok_or_else(|| self.error("must be a whole number of 32 bits"))
            }
            Value::Null => Ok(None),
            Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => Err(self.wrong_type("a number")),
        }
    }

    /// A port number, 1 to 65535, if present.
    pub(crate) fn port(&self) -> Result<Option<u16>, FieldError> {
        let Some(number) = self.integer()? else { return Ok(None) };
        match u16::try_from(number) {
            Ok(port) if port != 0 => Ok(Some(port)),
            Ok(_) | Err(_) => Err(self.error(format!("must be a port number from 1 to 65535, not {number}"))),
        }
    }

    /// A port number if present; 0 is what an unset one is sent as.
    pub(crate) fn port_or_zero(&self) -> Result<Option<u16>, FieldError> {
        match self.integer()? {
            None | Some(0) => Ok(None),
            Some(_) => self.port(),
        }
    }

    /// A map of strings.
    pub(crate) fn string_map(&self) -> Result<BTreeMap<String, String>, FieldError> {
        let mut map = BTreeMap::new();
        for (key, value) in self.entries()? {
            map.insert(key.to_owned(), value.string()?.unwrap_or_default().to_owned());
        }
        Ok(map)
    }
}
