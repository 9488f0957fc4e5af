//! Durations and sizes as people write them: `"10m"`, `"512M"`, or plain seconds and bytes.

use serde::{Deserialize, Deserializer, de::Error as _};

/// Milliseconds of a duration: `90`, `"90"`, `"1.5s"`, `"250ms"`, `"10m"`, `"2h"`, `"7d"`; a plain number is seconds.
pub fn duration_ms(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "ms" => 1.0,
        "" | "s" => 1e3,
        "m" | "min" => 6e4,
        "h" => 3.6e6,
        "d" => 8.64e7,
        _ => return None,
    };
    whole(number * factor)
}

/// Bytes of a size: `1024`, `"512M"`, `"1.5G"`, `"64k"`, `"10MiB"`; units are powers of 1024.
pub fn size_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1_048_576.0,
        "g" | "gb" | "gib" => 1_073_741_824.0,
        "t" | "tb" | "tib" => 1_099_511_627_776.0,
        _ => return None,
    };
    whole(number * factor)
}

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

fn whole(number: f64) -> Option<u64> {
    // 2^53: beyond it a float no longer counts single units.
    (0.0..=9_007_199_254_740_992.0).contains(&number).then_some(number as u64)
}

/// `9.3s`, `2m 10s`, `1h 5m`.
pub fn show_duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..=9 => format!("{:.1}s", ms as f64 / 1e3),
        10..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// `1.2 KB`, `512 MB`; powers of 1024.
pub fn show_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KB", "MB", "GB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B" && value < 10.0);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TB")
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Text(String),
}

/// For `#[serde(deserialize_with)]`: an optional duration in milliseconds.
pub fn read_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    read(from, duration_ms, "a duration such as \"90s\", \"10m\" or a number of seconds")
}

/// For `#[serde(deserialize_with)]`: an optional size in bytes.
pub fn read_size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    read(from, size_bytes, "a size such as \"512M\", \"2G\" or a number of bytes")
}

fn read<'de, D: Deserializer<'de>>(
    from: D,
    parse: fn(&str) -> Option<u64>,
    expected: &str,
) -> Result<Option<u64>, D::Error> {
    let text = match Option::<Written>::deserialize(from) {
        Ok(None) => return Ok(None),
        Ok(Some(Written::Number(number))) => format!("{number}"),
        Ok(Some(Written::Text(text))) => text,
        Err(_) => return Err(D::Error::custom(format!("expected {expected}"))),
    };
    match parse(&text) {
        Some(value) => Ok(Some(value)),
        None => Err(D::Error::custom(format!("`{}`: expected {expected}", crate::ids::shown(&text)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_as_people_write_them() {
        assert_eq!(duration_ms("10m"), Some(600_000));
        assert_eq!(duration_ms("1.5s"), Some(1500));
        assert_eq!(duration_ms("90"), Some(90_000));
        assert_eq!(size_bytes("512M"), Some(536_870_912));
        assert_eq!(size_bytes("10MiB"), Some(10_485_760));
        assert_eq!(size_bytes("7"), Some(7));
    }

    #[test]
    fn what_is_no_duration_or_size_is_refused() {
        for bad in ["", "-1", "10x", "m", "1e3", "NaN", "99999999999999999999"] {
            assert_eq!(duration_ms(bad), None, "{bad}");
            assert_eq!(size_bytes(bad), None, "{bad}");
        }
    }
}
