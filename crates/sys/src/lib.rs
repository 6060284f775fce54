//!

pub mod conntrack;
pub mod fake;
pub mod inotify;
pub mod link;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod packet_batch;
pub mod process;
pub mod terminal;
