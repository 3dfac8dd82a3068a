//! What a pull tells: bars on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Mutex;

use cofferdam_executor::PullEvent;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::escape::escape_line;

/// Tells how a pull goes, on standard error: standard output is for results.
pub(crate) struct Progress {
    bars: Option<Bars>,
    /// What plain lines call the layers that are coming.
    names: Mutex<BTreeMap<usize, String>>,
    quiet: bool,
}

struct Bars {
    all: MultiProgress,
    layers: Mutex<BTreeMap<usize, ProgressBar>>,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Progress {
        let bars = || Bars { all: MultiProgress::new(), layers: Mutex::new(BTreeMap::new()) };
        Progress {
            bars: (std::io::stderr().is_terminal() && !quiet).then(bars),
            names: Mutex::default(),
            quiet,
        }
    }

    pub(crate) fn tell(&self, event: &PullEvent) {
        match &self.bars {
            _ if self.quiet => {}
            Some(bars) => bars.tell(event),
            None => self.tell_plainly(event),
        }
    }

    fn tell_plainly(&self, event: &PullEvent) {
        match event {
            PullEvent::Resolving { reference } => eprintln!("Pulling {}", escape_line(reference)),
            PullEvent::LayerExists { digest, .. } => eprintln!("{}: already here", digest.short()),
            PullEvent::LayerStarted { layer, digest, total_bytes } => {
                let size = cofferdam_executor::request::size::show_bytes(*total_bytes);
                eprintln!("{}: fetching {size}", digest.short());
                if let Ok(mut names) = self.names.lock() {
                    names.insert(*layer, digest.short().to_owned());
                }
            }
            PullEvent::LayerDone { layer, .. } => {
                if let Some(name) = self.names.lock().ok().and_then(|mut names| names.remove(layer)) {
                    eprintln!("{name}: done");
                }
            }
            PullEvent::Warning { message } => eprintln!("warning: {}", escape_line(message)),
            _ => {}
        }
    }
}

impl Bars {
    fn tell(&self, event: &PullEvent) {
        match event {
            PullEvent::Resolving { reference } => self.say(&format!("Pulling {}", escape_line(reference))),
            PullEvent::LayerExists { digest, .. } => self.say(&format!("{}: already here", digest.short())),
            PullEvent::LayerStarted { layer, digest, total_bytes } => {
                self.start(*layer, digest.short(), *total_bytes)
            }
            PullEvent::LayerProgress { layer, bytes, .. } => {
                self.with(*layer, |bar| bar.set_position(*bytes))
            }
            PullEvent::LayerDone { layer, .. } => self.with(*layer, |bar| bar.finish_with_message("done")),
            PullEvent::Warning { message } => self.say(&format!("warning: {}", escape_line(message))),
            _ => {}
        }
    }

    fn say(&self, line: &str) {
        // A terminal that is gone needs no bars.
        let _ = self.all.println(line);
    }

    fn start(&self, layer: usize, name: &str, total_bytes: u64) {
        let template = "{prefix} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.all.add(ProgressBar::new(total_bytes).with_style(style.progress_chars("=> ")));
        bar.set_prefix(name.to_owned());
        if let Ok(mut layers) = self.layers.lock() {
            layers.insert(layer, bar);
        }
    }

    fn with(&self, layer: usize, act: impl FnOnce(&ProgressBar)) {
        if let Ok(layers) = self.layers.lock()
            && let Some(bar) = layers.get(&layer)
        {
            act(bar);
        }
    }
}
