//! 

pub mod inotify;
pub mod link;
pub mod netns;
pub mod packet_batch;
pub mod process;
pub mod terminal;
pub mod conntrack;
pub mod fake;
pub mod netlink;
pub mod nft;
