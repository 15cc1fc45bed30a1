//! Sizes and durations as people write them.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

/// A duration written as `90s`, `10m` or `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|d| Duration::try_from(d).ok())
            .filter(|d| !d.is_zero())
            .map(Span)
            .ok_or_else(|| format!("`{text}` is not a duration; write for example 90s or 10m"))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// A size in bytes, written with its unit: `4GiB`, `512MiB`. `G` and `M` are the binary units, as in libvirt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Size(pub u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        if trimmed.ends_with(|c: char| c.is_ascii_digit()) || trimmed.is_empty() {
            return Err(format!(
                "`{text}` has no unit; write for example 4GiB or 512MiB"
            ));
        }
        // A bare G means what it means to libvirt and qemu-img: 1024³.
        let spelled = match trimmed.chars().last() {
            Some('K' | 'M' | 'G' | 'T') => format!("{trimmed}iB"),
            _ => trimmed.to_owned(),
        };
        match spelled.parse::<bytesize::ByteSize>() {
            // What does not fit into 64 bits comes as the largest that does.
            Ok(size) if size.as_u64() == u64::MAX => {
                Err(format!("`{text}` is more than any disk or memory has"))
            }
            Ok(size) if size.as_u64() > 0 => Ok(Self(size.as_u64())),
            _ => Err(format!(
                "`{text}` is not a size; write for example 4GiB or 512MiB"
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (mut unit, mut value) = (0, self.0);
        while unit < 4 && value != 0 && value.is_multiple_of(1024) {
            value /= 1024;
            unit += 1;
        }
        write!(f, "{value}{}", ["B", "KiB", "MiB", "GiB", "TiB"][unit])
    }
}
