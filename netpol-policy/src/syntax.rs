//! Syntax of names, label keys, label values and port names, as the API server checks it (apimachinery
//! `util/validation`). Everything is ASCII by these rules, so lengths in bytes are lengths in characters.

/// RFC 1123 label: what namespaces are named with.
pub(crate) fn dns_label(text: &str) -> Result<(), &'static str> {
    let fits = !text.is_empty() && text.len() <= 63;
    if fits && is_dns_label_of_any_length(text) {
        Ok(())
    } else {
        Err("must be an RFC 1123 label: at most 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit")
    }
}

/// RFC 1123 subdomain: what pods, nodes and policies are named with. Dots are legal (A17).
pub(crate) fn dns_subdomain(text: &str) -> Result<(), &'static str> {
    if text.len() <= 253 && text.split('.').all(is_dns_label_of_any_length) {
        Ok(())
    } else {
        Err("must be an RFC 1123 subdomain: at most 253 of a-z, 0-9, '-' and '.', \
             each part beginning and ending with a letter or digit")
    }
}

/// The API's subdomain rule limits the whole name only, not its parts.
fn is_dns_label_of_any_length(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Label key: an optional DNS subdomain and a slash, then a name.
pub(crate) fn label_key(text: &str) -> Result<(), &'static str> {
    let name = match text.split_once('/') {
        Some((prefix, name)) => {
            dns_subdomain(prefix)?;
            name
        }
        None => text,
    };
    if !name.is_empty() && is_qualified(name) {
        Ok(())
    } else {
        Err("must be a label key: an optional DNS prefix with '/', then 1 to 63 letters, digits, '-', '_' or '.', \
             beginning and ending with a letter or digit")
    }
}

/// Label value; may be empty.
pub(crate) fn label_value(text: &str) -> Result<(), &'static str> {
    if is_qualified(text) {
        Ok(())
    } else {
        Err("must be a label value: empty, or at most 63 letters, digits, '-', '_' or '.', \
             beginning and ending with a letter or digit")
    }
}

fn is_qualified(text: &str) -> bool {
    let outer = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    bytes.len() <= 63 && outer(bytes.first()) && outer(bytes.last()) && text.bytes().all(inner)
}

/// `IANA_SVC_NAME` (RFC 6335): what ports are named with.
pub(crate) fn port_name(text: &str) -> Result<(), &'static str> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > 15 {
        return Err("must be a port name of 1 to 15 characters");
    }
    if !text.bytes().all(inner) {
        return Err("a port name consists of a-z, 0-9 and '-'");
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err("a port name has at least one letter a-z (a number is written without quotes)");
    }
    if text.contains("--") || text.starts_with('-') || text.ends_with('-') {
        return Err("a port name neither begins nor ends with '-', nor has two in a row");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_contain_dots_and_reach_their_full_length() {
        let long = format!("{}.b", "a".repeat(251));
        for good in ["a", "0", "web-0", "web.v2-0", "a.b.c", long.as_str()] {
            assert_eq!(dns_subdomain(good), Ok(()), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", ".a", "a.", "a_b", "ä", &"a".repeat(254)] {
            assert!(dns_subdomain(bad).is_err(), "{bad}");
        }
        assert_eq!(dns_label(&"a".repeat(63)), Ok(()));
        for bad in ["", "a.b", &"a".repeat(64)] {
            assert!(dns_label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn label_keys_have_an_optional_prefix_and_values_may_be_empty() {
        for good in ["app", "A_b.c-1", "kubernetes.io/metadata.name", &format!("x.y/{}", "a".repeat(63))] {
            assert_eq!(label_key(good), Ok(()), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "a_", "Upper.io/a", "a b", &"a".repeat(64)] {
            assert!(label_key(bad).is_err(), "{bad}");
        }
        for good in ["", "x", "1.0", "a_b", &"a".repeat(63)] {
            assert_eq!(label_value(good), Ok(()), "{good}");
        }
        for bad in ["-", "a.", "a/b", "a b", "é", &"a".repeat(64)] {
            assert!(label_value(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_names_follow_rfc_6335() {
        for good in ["http", "a", "8080-tcp", "serve-81-tcp", "a23456789012345"] {
            assert_eq!(port_name(good), Ok(()), "{good}");
        }
        for bad in ["", "80", "8-0", "HTTP", "-a", "a-", "a--b", "a_b", "a234567890123456"] {
            assert!(port_name(bad).is_err(), "{bad}");
        }
    }
}
