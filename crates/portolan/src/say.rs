//! What is said to people. A terminal that is closed or a pipe whose reader has gone must not end the program in the
//! middle: what it made on the host would stay behind. So a line that cannot be written is not.

/// A line on standard output.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// A line on standard error.
macro_rules! note {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

pub(crate) use {note, say};
