//! Container output in the CRI log format: `TIME stdout|stderr F|P LINE`, one file that is rotated by size.
//! Writing never fails to its caller: a container must not stop because a log cannot be kept.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

/// Longest piece of a line in one record; longer lines are split, all pieces but the last marked `P`.
const MAX_LINE: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

pub struct Writer {
    file: File,
    path: PathBuf,
    size: u64,
    max_bytes: u64,
    max_files: u32,
    /// The unfinished line of each stream.
    pending: [Vec<u8>; 2],
    record: Vec<u8>,
}

/// The name of the n-th rotated file; 0 is the one being written.
pub fn rotated(path: &Path, n: u32) -> PathBuf {
    if n == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

impl Writer {
    pub fn new(file: File, path: PathBuf, max_bytes: u64, max_files: u32) -> Self {
        let size = file.metadata().map_or(0, |m| m.len());
        Self { file, path, size, max_bytes, max_files, pending: Default::default(), record: Vec::new() }
    }

    pub fn write(&mut self, stream: Stream, mut bytes: &[u8]) {
        let mut pending = std::mem::take(&mut self.pending[stream as usize]);
        while !bytes.is_empty() {
            let room = MAX_LINE - pending.len();
            let end = bytes.iter().take(room).position(|b| *b == b'\n');
            let taken = end.unwrap_or(bytes.len().min(room));
            pending.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if end.is_some() {
                bytes = &bytes[1..];
                self.append(stream, 'F', &pending);
                pending.clear();
            } else if pending.len() == MAX_LINE {
                self.append(stream, 'P', &pending);
                pending.clear();
            }
        }
        self.pending[stream as usize] = pending;
        self.flush();
    }

    /// Writes the last line even if it has no end.
    pub fn finish(&mut self, stream: Stream) {
        let pending = std::mem::take(&mut self.pending[stream as usize]);
        if !pending.is_empty() {
            self.append(stream, 'F', &pending);
        }
        self.flush();
    }

    fn append(&mut self, stream: Stream, tag: char, line: &[u8]) {
        let _ = write!(self.record, "{:.9} {} {tag} ", Timestamp::now(), stream.name());
        self.record.extend_from_slice(line);
        self.record.push(b'\n');
        if self.size + self.record.len() as u64 >= self.max_bytes {
            self.flush();
            self.rotate();
        }
    }

    fn flush(&mut self) {
        if self.file.write_all(&self.record).is_ok() {
            self.size += self.record.len() as u64;
        }
        self.record.clear();
    }

    fn rotate(&mut self) {
        for n in (1..self.max_files).rev() {
            let _ = fs::rename(rotated(&self.path, n - 1), rotated(&self.path, n));
        }
        if let Ok(file) = File::options().create(true).append(true).open(&self.path) {
            self.file = file;
            self.size = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(dir: &Path, max_bytes: u64, max_files: u32) -> Writer {
        let path = dir.join("0.log");
        let file = File::options().create(true).append(true).open(&path).expect("open");
        Writer::new(file, path, max_bytes, max_files)
    }

    fn lines(path: &Path) -> Vec<(String, String)> {
        let text = fs::read_to_string(path).expect("read");
        text.lines()
            .map(|l| {
                let mut parts = l.splitn(4, ' ');
                let time = parts.next().expect("time");
                assert!(
                    time.parse::<Timestamp>().is_ok() && time.len() == "2026-11-21T00:00:00.000000000Z".len(),
                    "{l}"
                );
                let head = format!("{} {}", parts.next().expect("stream"), parts.next().expect("tag"));
                (head, parts.next().expect("line").to_owned())
            })
            .collect()
    }

    #[test]
    fn lines_are_whole_per_stream_and_an_open_end_is_kept() {
        let dir = tempfile::tempdir().expect("dir");
        let mut w = writer(dir.path(), 1 << 20, 3);
        w.write(Stream::Stdout, b"one\ntw");
        w.write(Stream::Stderr, b"oops\n");
        w.write(Stream::Stdout, b"o\n\nlast");
        w.finish(Stream::Stdout);
        let got = lines(&dir.path().join("0.log"));
        let want =
            [("stdout F", "one"), ("stderr F", "oops"), ("stdout F", "two"), ("stdout F", ""), ("stdout F", "last")];
        assert_eq!(got, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn long_lines_are_partial_records() {
        let dir = tempfile::tempdir().expect("dir");
        let mut w = writer(dir.path(), 1 << 20, 3);
        w.write(Stream::Stdout, &vec![b'x'; MAX_LINE + 10]);
        w.write(Stream::Stdout, b"\n");
        let got = lines(&dir.path().join("0.log"));
        assert_eq!(
            got.iter().map(|(h, l)| (h.as_str(), l.len())).collect::<Vec<_>>(),
            [("stdout P", MAX_LINE), ("stdout F", 10)]
        );
    }

    #[test]
    fn rotation_keeps_the_newest_files() {
        let dir = tempfile::tempdir().expect("dir");
        let mut w = writer(dir.path(), 200, 3);
        for i in 0..40 {
            w.write(Stream::Stdout, format!("line {i}\n").as_bytes());
        }
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .expect("dir")
            .map(|e| e.expect("entry").file_name().into_string().expect("utf8"))
            .collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        let all: Vec<_> = [2, 1, 0].iter().flat_map(|n| lines(&rotated(&dir.path().join("0.log"), *n))).collect();
        assert_eq!(all.last().map(|l| l.1.as_str()), Some("line 39"));
        let numbers: Vec<u32> = all.iter().map(|l| l.1[5..].parse().expect("number")).collect();
        assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "nothing lost within what is kept: {numbers:?}");
    }
}
