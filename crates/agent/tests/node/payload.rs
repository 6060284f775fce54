//! What the test program does as a container's program.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    process::exit,
};

pub fn main(args: &[String]) -> Option<i32> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        // The built-in image starts this.
        ["echo"] => serve(8080),
        ["exit", code] => exit(code.parse().expect("code")),
        ["say", text, rest @ ..] => {
            println!("{text}");
            main(&rest.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
        }
        ["env"] => {
            for (k, v) in std::env::vars() {
                println!("{k}={v}");
            }
            Some(0)
        }
        ["cat", files @ ..] => {
            for file in files {
                print!("{}", fs::read_to_string(file).unwrap_or_else(|e| format!("{file}: {e}\n")));
            }
            Some(0)
        }
        ["exists", file] => Some(i32::from(!fs::exists(file).unwrap_or(false))),
        ["write", file, text] => {
            fs::write(file, text).expect("write");
            Some(0)
        }
        ["reopen"] => {
            let mut again = fs::File::options().write(true).open("/dev/stdout").expect("open /dev/stdout");
            again.write_all(b"reopened\n").expect("write");
            Some(0)
        }
        ["id"] => {
            let status = fs::read_to_string("/proc/self/status").expect("status");
            let wanted = ["Uid:", "Gid:", "CapEff:", "CapBnd:", "SigIgn:", "SigBlk:"];
            for line in status.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w))) {
                println!("{line}");
            }
            println!("cwd {}", std::env::current_dir().expect("cwd").display());
            Some(0)
        }
        ["sleep"] => {
            // A first process without a handler is not ended by TERM: only KILL helps.
            loop {
                std::thread::park();
            }
        }
        ["parrot"] => {
            for line in std::io::stdin().lines() {
                println!("heard {}", line.expect("a line"));
            }
            Some(0)
        }
        ["lines", n] => {
            for i in 0..n.parse::<u32>().expect("number") {
                println!("line {i}");
            }
            Some(0)
        }
        _ => None,
    }
}

fn serve(port: u16) -> ! {
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("bind");
    println!("serving");
    loop {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer);
        let name = std::env::var("HOSTNAME").unwrap_or_default();
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}", name.len());
        let _ = stream.write_all(text.as_bytes());
    }
}
