//! Durations as people read them (`k8s.io/apimachinery/pkg/util/duration.HumanDuration`): about two significant units.

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 24;
const YEAR: i64 = 365 * DAY;

/// `98s`, `3m14s`, `10m`, `2d3h`.
pub fn human_duration(seconds: i64) -> String {
    let two = |a: i64, unit_a: &str, b: i64, unit_b: &str| {
        if b == 0 { format!("{a}{unit_a}") } else { format!("{a}{unit_a}{b}{unit_b}") }
    };
    // Clocks of two machines may differ a little.
    if seconds < -1 {
        return "<invalid>".into();
    }
    if seconds < 0 {
        return "0s".into();
    }
    if seconds < 2 * MINUTE {
        return format!("{seconds}s");
    }
    let minutes = seconds / MINUTE;
    if minutes < 10 {
        return two(minutes, "m", seconds % MINUTE, "s");
    }
    if minutes < 3 * 60 {
        return format!("{minutes}m");
    }
    let hours = seconds / HOUR;
    if hours < 8 {
        return two(hours, "h", minutes % 60, "m");
    }
    if hours < 2 * DAY {
        return format!("{hours}h");
    }
    if hours < 8 * DAY {
        return two(hours / DAY, "d", hours % DAY, "h");
    }
    if hours < 2 * YEAR {
        return format!("{}d", hours / DAY);
    }
    if hours < 8 * YEAR {
        return two(hours / YEAR, "y", hours / DAY % 365, "d");
    }
    format!("{}y", hours / YEAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_033_human_durations() {
        let (m, h, d) = (60, 3600, 86_400);
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (98, "98s"),
            (106, "106s"),
            (119, "119s"),
            (120, "2m"),
            (2 * m + 8, "2m8s"),
            (3 * m + 14, "3m14s"),
            (10 * m - 1, "9m59s"),
            (10 * m, "10m"),
            (35 * m + 59, "35m"),
            (3 * h - 1, "179m"),
            (3 * h, "3h"),
            (3 * h + 5 * m, "3h5m"),
            (8 * h, "8h"),
            (47 * h + 3599, "47h"),
            (2 * d, "2d"),
            (2 * d + 3 * h, "2d3h"),
            (8 * d - 1, "7d23h"),
            (8 * d, "8d"),
            (365 * d, "365d"),
            (730 * d, "2y"),
            (731 * d, "2y1d"),
            (8 * 365 * d, "8y"),
            (9 * 365 * d + 100 * d, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }
}
