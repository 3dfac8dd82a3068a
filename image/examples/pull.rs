//! Pulls an image into a store and says how long it took: `pull STORE IMAGE`.

use std::path::Path;
use std::time::Instant;

use cofferdam_image::{ImageRef, PullOptions, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, name] = &arguments[..] else { return Err("usage: pull STORE IMAGE".into()) };
    let store = Store::open(Path::new(store))?;
    let start = Instant::now();
    let image = store.pull(&ImageRef::parse(name)?, &PullOptions::default(), &|_| {})?;
    let megabytes = image.size_bytes / 1_000_000;
    println!("{}: {} layers, {megabytes} MB in {:?}", image.digest, image.layers.len(), start.elapsed());
    Ok(())
}
