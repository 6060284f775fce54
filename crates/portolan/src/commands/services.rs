//! `portolan services`: the table of `up`, at any later time.

use anyhow::Result;

use super::Services;
use crate::say::say;
use crate::{admin, overview};

pub fn run(options: &Services) -> Result<i32> {
    let rows: Vec<overview::Row> = admin::get_json(&options.dirs.admin_socket(), "/services")?;
    if options.output == "json" {
        say!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        say!("{}", overview::table(&rows));
    }
    Ok(0)
}
