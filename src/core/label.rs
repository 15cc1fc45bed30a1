//! Labels as Kubernetes has them: which keys and values it takes. Pure; the rules and words are those of the API server's
//! validation (apimachinery's `validation.IsQualifiedName` and `IsValidLabelValue`).

const NAME: usize = 63;
const PREFIX: usize = 253;
const ALLOWED: &str =
    "letters, digits, `-`, `_` and `.`, and begins and ends with a letter or digit";

/// What is wrong with a label's (or a taint's) key: an optional DNS name and `/`, then a name.
pub fn check_key(key: &str) -> Result<(), String> {
    let name = match key.split_once('/') {
        None => key,
        Some((prefix, name)) => {
            if !is_dns_subdomain(prefix) {
                return Err(format!(
                    "before its `/` a key has a DNS name in lower case, {PREFIX} characters at most: `{prefix}` is none"
                ));
            }
            name
        }
    };
    if is_name(name) {
        Ok(())
    } else {
        Err(format!("a key's name has 1 to {NAME} {ALLOWED}"))
    }
}

/// What is wrong with a label's (or a taint's) value. Empty is well.
pub fn check_value(value: &str) -> Result<(), String> {
    if value.is_empty() || is_name(value) {
        Ok(())
    } else {
        Err(format!("a value has at most {NAME} {ALLOWED}"))
    }
}

fn is_name(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    (1..=NAME).contains(&text.len())
        && text.starts_with(edge)
        && text.ends_with(edge)
        && text
            .chars()
            .all(|c| edge(c) || matches!(c, '-' | '_' | '.'))
}

fn is_dns_subdomain(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= PREFIX
        && text.split('.').all(|part| {
            part.starts_with(edge)
                && part.ends_with(edge)
                && part.chars().all(|c| edge(c) || c == '-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let long = "a".repeat(63);
        let prefix = format!("{}.io", "a".repeat(250));
        for good in [
            "disk",
            "Disk_1.x",
            "7",
            "example.com/disk",
            "node-role.kubernetes.io/worker",
            &long,
            &format!("{prefix}/{long}"),
        ] {
            assert_eq!(check_key(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "-disk",
            "disk-",
            "di sk",
            "di/s/k",
            "/disk",
            "example.com/",
            "Example.com/disk",
            "a..b/disk",
            "disk=",
            "schön",
            &format!("{long}a"),
            &format!("a{prefix}/x"),
        ] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values() {
        let long = "a".repeat(63);
        for good in ["", "ssd", "1", "A.b_c-9", &long] {
            assert_eq!(check_value(good), Ok(()), "{good}");
        }
        for bad in [
            "a b",
            "-a",
            "a-",
            ".",
            "a/b",
            "a=b",
            "a,b",
            &format!("{long}a"),
        ] {
            assert!(check_value(bad).is_err(), "{bad}");
        }
    }
}
