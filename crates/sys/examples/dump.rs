use portolan_sys::nft::*;
fn main(){ let mut k=Kernel::open().unwrap(); let t=k.read(Family::Ip,"portolan").unwrap().unwrap(); for (n,s) in &t.sets { println!("{n}: {:?}", s.def);} for (n,c) in &t.chains { println!("{n}: {:?}", c.base); for r in &c.rules { println!("   {:?}", r.exprs);} } for (n,s) in &t.sets { println!("{n}: {:?}", s.elements);} 
 if let Ok(Some(t))=k.read(Family::Ip6,"portolan") { for (n,s) in &t.sets { println!("{n}: {:?}", s.def);} } }
