//! `networking.k8s.io/v1 NetworkPolicy`: defaulting (A1–A10, P1–P9) and validation (A11, A14, B1–B4) as the API server
//! does them, and what remains of a policy that fails it ([`isolation`], decision D15).

use ipnet::IpNet;
use serde_json::Value;

use super::addresses::{WrittenCidr, parse_written_cidr};
use super::field::{Field, FieldError};
use super::meta::Meta;
use super::protocol;
use crate::model::{
    NamespaceScope, ObjectName, Operator, Peer, Policy, PortMatch, PortSpec, Requirement, Rule, Selector,
};
use crate::selector::InvalidRequirement;
use crate::syntax;

/// Directions in which a policy isolates.
#[derive(Clone, Copy)]
struct Types {
    ingress: bool,
    egress: bool,
}

pub(super) fn decode(meta: Meta, object: &Field<'_>) -> Result<Policy, FieldError> {
    let Meta { name, uid: _, labels: _, annotations: _ } = meta;
    let spec = object.member("spec")?;
    let pod_selector = selector(&spec.member("podSelector")?)?.unwrap_or_default();
    let types = policy_types(&spec)?;
    // Both sections are validated, also one that policyTypes makes void (A3), as the API server does.
    let ingress = rules(&spec.member("ingress")?, "from", &name.namespace)?;
    let egress = rules(&spec.member("egress")?, "to", &name.namespace)?;
    Ok(Policy {
        name,
        selector: pod_selector,
        ingress: types.ingress.then_some(ingress),
        egress: types.egress.then_some(egress),
    })
}

/// What a policy that cannot be read isolates. It reads every part as far as it can and never grants anything.
pub(super) fn isolation(name: ObjectName, object: &Value) -> Policy {
    let root = Field::root(object);
    let in_spec = |spec: &Field<'_>| -> (Option<Selector>, Option<Types>) {
        let pods = spec.member("podSelector").and_then(|field| selector(&field)).ok();
        (pods.map(Option::unwrap_or_default), policy_types(spec).ok())
    };
    let (pods, types) = root.member("spec").map_or((None, None), |spec| in_spec(&spec));
    let Types { ingress, egress } = types.unwrap_or(Types { ingress: true, egress: true });
    Policy { name, selector: pods.unwrap_or_default(), ingress: ingress.then(Vec::new), egress: egress.then(Vec::new) }
}

fn policy_types(spec: &Field<'_>) -> Result<Types, FieldError> {
    let field = spec.member("policyTypes")?;
    let mut types = Types { ingress: false, egress: false };
    let listed = field.items()?;
    if listed.len() == 0 {
        // A section that is no list at all was still meant as one that says something.
        let egress_says_something = match spec.member("egress")?.value() {
            Value::Null => false,
            Value::Array(rules) => !rules.is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => true,
        };
        return Ok(Types { ingress: true, egress: egress_says_something });
    }
    if listed.len() > 2 {
        return Err(field.error("must not have more than two entries"));
    }
    for item in listed {
        match item.string()? {
            Some("Ingress") => types.ingress = true,
            Some("Egress") => types.egress = true,
            Some(other) => return Err(item.error(format!("must be Ingress or Egress, not {other:?}"))),
            None => return Err(item.error("must be Ingress or Egress")),
        }
    }
    Ok(types)
}

fn rules(field: &Field<'_>, peers_name: &str, namespace: &str) -> Result<Vec<Rule>, FieldError> {
    let mut rules = Vec::new();
    for (index, rule) in field.items()?.enumerate() {
        let ports_field = rule.member("ports")?;
        let ports = ports_field.items()?.map(|port| port_match(&port)).collect::<Result<Vec<_>, _>>()?;
        let peers_field = rule.member(peers_name)?;
        let peers = peers_field.items()?.map(|entry| peer(&entry, namespace)).collect::<Result<Vec<_>, _>>()?;
        rules.push(Rule {
            index,
            peers: (!peers.is_empty()).then_some(peers),
            ports: (!ports.is_empty()).then_some(ports),
        });
    }
    Ok(rules)
}

fn port_match(entry: &Field<'_>) -> Result<PortMatch, FieldError> {
    let protocol = protocol(&entry.member("protocol")?)?;
    let end_field = entry.member("endPort")?;
    let port_field = entry.member("port")?;
    let ports = match port_field.value() {
        Value::Null | Value::String(_) if !end_field.is_absent() => {
            end_field.integer()?;
            return Err(end_field.error("needs a port that is a number"));
        }
        Value::Null => PortSpec::All,
        Value::String(name) => {
            syntax::port_name(name).map_err(|problem| port_field.error(problem))?;
            PortSpec::Named(name.clone())
        }
        Value::Number(_) => {
            let wanted = || port_field.error("must be a port number or a port name");
            let first = port_field.port()?.ok_or_else(wanted)?;
            let last = end_field.port()?.unwrap_or(first);
            if last < first {
                return Err(end_field.error(format!("must not be less than port {first}")));
            }
            PortSpec::Range(first, last)
        }
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            return Err(port_field.error("must be a port number or a port name"));
        }
    };
    Ok(PortMatch { protocol, ports })
}

fn peer(entry: &Field<'_>, namespace: &str) -> Result<Peer, FieldError> {
    let pods = selector(&entry.member("podSelector")?)?;
    let namespaces = selector(&entry.member("namespaceSelector")?)?;
    let block_field = entry.member("ipBlock")?;
    match (pods, namespaces) {
        (None, None) if block_field.is_absent() => {
            Err(entry.error("needs a podSelector, a namespaceSelector or an ipBlock"))
        }
        (None, None) => ip_block(&block_field),
        (_, _) if !block_field.is_absent() => Err(entry.error("cannot have an ipBlock beside a selector")),
        (pods, namespaces) => Ok(Peer::Pods {
            namespaces: namespaces.map_or_else(|| NamespaceScope::Own(namespace.to_owned()), NamespaceScope::Matching),
            pods: pods.unwrap_or_default(),
        }),
    }
}

fn ip_block(field: &Field<'_>) -> Result<Peer, FieldError> {
    let cidr_field = field.member("cidr")?;
    let block = cidr(&cidr_field)?;
    let mut except = Vec::<IpNet>::new();
    let except_field = field.member("except")?;
    for item in except_field.items()? {
        let taken_out = cidr(&item)?;
        let inside = block.net.contains(&taken_out.net.network());
        if !inside || taken_out.written_prefix <= block.written_prefix {
            return Err(item.error(format!("{} must be a strict subset of the cidr {}", taken_out.net, block.net)));
        }
        except.push(taken_out.net);
    }
    except.sort_unstable();
    except.dedup();
    Ok(Peer::Block { cidr: block.net, except })
}

fn cidr(field: &Field<'_>) -> Result<WrittenCidr, FieldError> {
    let text = field.filled_string()?.ok_or_else(|| field.error("is required"))?;
    parse_written_cidr(text)
        .ok_or_else(|| field.error(format!("must be a CIDR such as 10.0.0.0/8 or 2001:db8::/64, not {text:?}")))
}

/// A `metav1.LabelSelector`; `None` if absent or null, which means other things in other places (A4, A12).
pub(crate) fn selector(field: &Field<'_>) -> Result<Option<Selector>, FieldError> {
    if field.is_absent() {
        return Ok(None);
    }
    let mut requirements = Vec::new();
    let labels = field.member("matchLabels")?;
    for (key, value) in labels.entries()? {
        let text = value.string()?.unwrap_or_default().to_owned();
        let requirement = Requirement { key: key.to_owned(), operator: Operator::In(vec![text]) };
        requirement.validate().map_err(|problem| match problem {
            InvalidRequirement::Key(message) | InvalidRequirement::Value(_, message) => value.error(message),
            InvalidRequirement::NoValues => value.error("must have a value"),
        })?;
        requirements.push(requirement);
    }
    let expressions = field.member("matchExpressions")?;
    for entry in expressions.items()? {
        requirements.push(expression(&entry)?);
    }
    Ok(Some(Selector::new(requirements)))
}

fn expression(entry: &Field<'_>) -> Result<Requirement, FieldError> {
    let key_field = entry.member("key")?;
    let operator_field = entry.member("operator")?;
    let values_field = entry.member("values")?;
    let mut values = Vec::new();
    for item in values_field.items()? {
        values.push(item.string()?.unwrap_or_default().to_owned());
    }
    let without_values = |operator: Operator| match values.as_slice() {
        [] => Ok(operator),
        [..] => Err(values_field.error("must be empty with the operators Exists and DoesNotExist")),
    };
    let operator = match operator_field.string()?.unwrap_or_default() {
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => without_values(Operator::Exists)?,
        "DoesNotExist" => without_values(Operator::DoesNotExist)?,
        other => {
            return Err(operator_field.error(format!("must be In, NotIn, Exists or DoesNotExist, not {other:?}")));
        }
    };
    let requirement = Requirement { key: key_field.string()?.unwrap_or_default().to_owned(), operator };
    match requirement.validate() {
        Ok(()) => Ok(requirement),
        Err(InvalidRequirement::Key(message)) => Err(key_field.error(message)),
        Err(InvalidRequirement::NoValues) => Err(values_field.error("is required with the operators In and NotIn")),
        Err(InvalidRequirement::Value(index, message)) => {
            let invalid = values_field.items()?.nth(index);
            Err(invalid.map_or_else(|| values_field.error(message), |item| item.error(message)))
        }
    }
}
