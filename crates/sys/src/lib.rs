//! 

pub mod link;
pub mod netns;
pub mod process;
