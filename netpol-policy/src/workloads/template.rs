//! Workloads: how many pods they want, what those are called, and the template they are made from.

use serde_json::{Map, Value, json};

use super::{as_object, decode_pod, member};
use crate::decode::field::{Field, FieldError};
use crate::decode::{Rejected, group, meta, policy};
use crate::model::{ObjectName, Pod};
use crate::{decode, syntax};

/// A kind that makes pods. The order is that in which names are handed out: those of a StatefulSet's pods are fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Workload {
    StatefulSet,
    Deployment,
    DaemonSet,
    ReplicaSet,
    Job,
    ReplicationController,
}

/// More pods than any node runs (the kubelet's own limit is 110 unless configured); a typo must not fill the memory.
const MOST_PODS: i32 = 1000;

impl Workload {
    const ALL: [Self; 6] = [
        Self::StatefulSet,
        Self::Deployment,
        Self::DaemonSet,
        Self::ReplicaSet,
        Self::Job,
        Self::ReplicationController,
    ];

    const fn kind(self) -> &'static str {
        match self {
            Self::StatefulSet => "StatefulSet",
            Self::Deployment => "Deployment",
            Self::DaemonSet => "DaemonSet",
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
            Self::ReplicationController => "ReplicationController",
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::StatefulSet | Self::Deployment | Self::DaemonSet | Self::ReplicaSet => "apps/v1",
            Self::Job => "batch/v1",
            Self::ReplicationController => "v1",
        }
    }

    /// The workload kind of an object. Kinds of the same name in other groups (`batch.volcano.sh Job`) are others.
    pub(super) fn of(value: &Value) -> Option<Self> {
        let name = value.get("kind")?.as_str()?;
        let workload = Self::ALL.into_iter().find(|workload| workload.kind() == name)?;
        let ours = match value.get("apiVersion") {
            Some(Value::String(version)) => {
                let written = group(version);
                written == group(workload.api_version()) || written == "extensions"
            }
            Some(_) | None => true,
        };
        ours.then_some(workload)
    }

    #[expect(clippy::result_large_err, reason = "a decoded object is as large as the error")]
    pub(super) fn name(self, value: &Value) -> Result<ObjectName, Rejected> {
        let read = || -> Result<ObjectName, FieldError> {
            let root = Field::root(value);
            let version = root.member("apiVersion")?;
            if let Some(written) = version.filled_string()?.filter(|written| *written != self.api_version()) {
                return Err(version.error(format!("{written} is not served, write {}", self.api_version())));
            }
            let metadata = root.member("metadata")?;
            let name_field = metadata.member("name")?;
            let name = name_field.filled_string()?.ok_or_else(|| name_field.error("is required"))?;
            syntax::dns_subdomain(name).map_err(|problem| name_field.error(problem))?;
            let namespace_field = metadata.member("namespace")?;
            let namespace = namespace_field.filled_string()?.unwrap_or(decode::DEFAULT_NAMESPACE);
            syntax::dns_label(namespace).map_err(|problem| namespace_field.error(problem))?;
            Ok(ObjectName::new(namespace, name))
        };
        read().map_err(|error| Rejected::new(self.kind(), meta::readable_name(decode::Kind::Pod, value), error))
    }

    /// The pods it makes, before they run. `is_taken` tells names that other pods have.
    #[expect(clippy::result_large_err, reason = "a decoded object is as large as the error")]
    pub(super) fn pods(
        self,
        name: &ObjectName,
        value: &Value,
        is_taken: impl Fn(&ObjectName) -> bool,
    ) -> Result<Vec<(Value, Pod)>, Rejected> {
        let refuse = |error| Rejected::new(self.kind(), Some(name.clone()), error);
        let (ordinals, template) = self.read(value).map_err(refuse)?;
        let pod = |ordinal: i64| -> Result<(Value, Pod), Rejected> {
            let by_number = ObjectName::new(&*name.namespace, format!("{}-{ordinal}", name.name));
            let pod_name = if is_taken(&by_number) {
                let kind = self.kind().to_lowercase();
                ObjectName::new(&*name.namespace, format!("{}-{kind}-{ordinal}", name.name))
            } else {
                by_number
            };
            if is_taken(&pod_name) {
                let message = format!("its pod cannot be called {pod_name}: another has that name");
                return Err(refuse(FieldError { field: "metadata.name".to_owned(), message }));
            }
            let value = self.pod(&pod_name, name, ordinal, &template);
            let decoded = decode_pod(&value).map_err(|Rejected { field, message, .. }| {
                let field = if field == "metadata.name" { field } else { format!("spec.template.{field}") };
                refuse(FieldError { field, message })
            })?;
            Ok((value, decoded))
        };
        if ordinals.is_empty() {
            // A template is validated also while nothing is made from it.
            pod(0)?;
        }
        ordinals.map(pod).collect()
    }

    fn read(self, value: &Value) -> Result<(std::ops::Range<i64>, Value), FieldError> {
        let root = Field::root(value);
        let spec = root.member("spec")?;
        let first = match self {
            Self::StatefulSet => i64::from(count(&spec.member("ordinals")?.member("start")?)?.unwrap_or(0)),
            Self::Deployment | Self::DaemonSet | Self::ReplicaSet | Self::Job | Self::ReplicationController => 0,
        };
        let wanted = match self {
            Self::StatefulSet | Self::Deployment | Self::ReplicaSet | Self::ReplicationController => {
                let replicas = spec.member("replicas")?;
                at_most(&replicas, count(&replicas)?.unwrap_or(1))?
            }
            Self::DaemonSet => 1,
            Self::Job => {
                let parallelism = spec.member("parallelism")?;
                let side_by_side = at_most(&parallelism, count(&parallelism)?.unwrap_or(1))?;
                let in_all = count(&spec.member("completions")?)?.unwrap_or(i32::MAX);
                if spec.member("suspend")?.boolean()? { 0 } else { side_by_side.min(in_all) }
            }
        };
        let template = spec.member("template")?;
        let template_metadata = template.member("metadata")?;
        let labels_field = template_metadata.member("labels")?;
        let labels = labels_field.string_map()?;
        if self.needs_selector() {
            let selector_field = spec.member("selector")?;
            let selector = policy::selector(&selector_field)?.filter(|selector| !selector.is_everything());
            let selector = selector.ok_or_else(|| selector_field.error("is required"))?;
            if !selector.matches(&labels) {
                return Err(labels_field.error("must satisfy spec.selector"));
            }
        }
        Ok((first..first + i64::from(wanted), template.value().clone()))
    }

    /// The API server fills in the selectors of the others.
    const fn needs_selector(self) -> bool {
        match self {
            Self::StatefulSet | Self::Deployment | Self::DaemonSet | Self::ReplicaSet => true,
            Self::Job | Self::ReplicationController => false,
        }
    }

    fn pod(self, pod: &ObjectName, owner: &ObjectName, ordinal: i64, template: &Value) -> Value {
        let mut value = Value::Object(Map::new());
        for part in ["metadata", "spec"] {
            if let Some(given) = template.get(part).filter(|given| !given.is_null()) {
                as_object(&mut value).insert(part.to_owned(), given.clone());
            }
        }
        let metadata = member(&mut value, "metadata");
        metadata.insert("name".to_owned(), json!(pod.name));
        metadata.insert("namespace".to_owned(), json!(pod.namespace));
        // A template's UID would be shared by all of its pods.
        metadata.remove("uid");
        let added = match self {
            Self::StatefulSet => vec![
                ("statefulset.kubernetes.io/pod-name", pod.name.clone()),
                ("apps.kubernetes.io/pod-index", ordinal.to_string()),
            ],
            Self::Job => {
                vec![("batch.kubernetes.io/job-name", owner.name.clone()), ("job-name", owner.name.clone())]
            }
            Self::Deployment | Self::DaemonSet | Self::ReplicaSet | Self::ReplicationController => Vec::new(),
        };
        // Labels of another type than a map were refused when the template was read.
        let labels = member(member_value(&mut value, "metadata"), "labels");
        for (key, text) in added {
            labels.insert(key.to_owned(), json!(text));
        }
        value
    }
}

fn member_value<'v>(value: &'v mut Value, name: &str) -> &'v mut Value {
    as_object(value).entry(name).or_insert(Value::Null)
}

fn count(field: &Field<'_>) -> Result<Option<i32>, FieldError> {
    match field.integer()? {
        Some(number) if number < 0 => Err(field.error("must not be negative")),
        number => Ok(number),
    }
}

fn at_most(field: &Field<'_>, number: i32) -> Result<i32, FieldError> {
    if number > MOST_PODS {
        return Err(field.error(format!("asks for {number} pods, more than the {MOST_PODS} that one node is given")));
    }
    Ok(number)
}
