//! `portolan down`: asks the running instance to stop; when it was killed, removes what it left.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Down;
use crate::app::{self, Instance};
use crate::say::note;

/// A pod may take its whole grace period to end; the instance itself cuts that short when it stops.
const PATIENCE: Duration = Duration::from_secs(90);

pub fn run(options: &Down) -> Result<i32> {
    app::require_root("portolan down")?;
    let dirs = &options.dirs;
    match Instance::read(dirs)? {
        Some(instance) => {
            if let Some(process) = instance.process()? {
                note!("stopping process {}", instance.pid);
                process.terminate().context("could not signal the running instance")?;
                if !process.wait(PATIENCE) {
                    bail!(
                        "process {} has not ended within {} s; see its log, or end it with `kill -9 {}` and repeat",
                        instance.pid,
                        PATIENCE.as_secs(),
                        instance.pid
                    );
                }
            }
            // After a clean stop there is nothing left to find; after a kill there is.
            if Instance::read(dirs)?.is_some() {
                note!("removing what process {} left", instance.pid);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(app::sweep(&instance.config()?))?;
            }
        }
        None => {
            note!("nothing runs in {}", dirs.run_dir.display());
            return purge(options);
        }
    }
    note!("stopped; nothing is left on the host");
    purge(options)
}

fn purge(options: &Down) -> Result<i32> {
    let dirs = &options.dirs;
    if options.purge && dirs.data_dir.exists() {
        let _lock = app::lock(dirs)?;
        std::fs::remove_dir_all(&dirs.data_dir).with_context(|| format!("{}", dirs.data_dir.display()))?;
        note!("removed {}", dirs.data_dir.display());
    }
    Ok(0)
}
