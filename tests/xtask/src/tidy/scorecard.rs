//! Figures about the tree, and the rules on unsafe code.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::source::{Role, Source};

/// The one crate that may contain unsafe code.
const UNSAFE_CRATE: &str = "cofferdam-linux";
const LONG_FUNCTION_LINES: usize = 70;
const LONG_FILE_LINES: usize = 500;

/// How many lines above an unsafe block its argument may begin.
const SAFETY_COMMENT_REACH_LINES: usize = 12;

/// What a walk over one file finds.
#[derive(Default)]
struct Findings {
    functions: usize,
    long_functions: Vec<(String, usize, usize)>,
    public_items: usize,
    undocumented: usize,
    unwraps: usize,
    unsafe_lines: Vec<usize>,
    /// Where the file's test modules begin and end.
    test_lines: usize,
}

/// Unsafe code outside the one crate, and unsafe blocks inside it without an argument.
pub(super) fn unsafe_violations(sources: &[Source]) -> Vec<String> {
    let mut violations = Vec::new();
    for source in sources {
        for line in examine(source).unsafe_lines {
            let place = format!("{}:{line}", source.path.display());
            if source.package != UNSAFE_CRATE {
                violations.push(format!("{place}: unsafe code outside {UNSAFE_CRATE}"));
            } else if !is_argued(&source.text, line) {
                violations.push(format!("{place}: no SAFETY comment"));
            }
        }
    }
    violations
}

/// Prints the figures of everything that ships, and where the outliers are.
pub(super) fn print(sources: &[Source]) {
    let mut total = Findings::default();
    let (mut lines, mut files) = (0, 0);
    let mut outliers = Vec::new();
    for source in sources.iter().filter(|source| source.role == Role::Product) {
        let found = examine(source);
        let own_lines = source.text.lines().count().saturating_sub(found.test_lines);
        if own_lines > LONG_FILE_LINES {
            outliers.push(format!("{}: {own_lines} lines", source.path.display()));
        }
        for (name, line, length) in &found.long_functions {
            outliers.push(format!("{}:{line}: {name} has {length} lines", source.path.display()));
        }
        lines += own_lines;
        files += 1;
        total.functions += found.functions;
        total.long_functions.extend(found.long_functions);
        total.public_items += found.public_items;
        total.undocumented += found.undocumented;
        total.unwraps += found.unwraps;
    }
    println!("  {files} files, {lines} lines without tests, {} functions", total.functions);
    println!(
        "  functions over {LONG_FUNCTION_LINES} lines: {} ({:.1} %)",
        total.long_functions.len(),
        ratio(total.long_functions.len(), total.functions) * 100.0
    );
    println!(
        "  public items documented: {:.1} % of {}",
        100.0 - ratio(total.undocumented, total.public_items) * 100.0,
        total.public_items
    );
    println!("  unwraps and expects per thousand lines: {:.1}", ratio(total.unwraps, lines) * 1000.0);
    for outlier in outliers {
        println!("    {outlier}");
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of lines, far below 2^52")]
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn examine(source: &Source) -> Findings {
    let mut found = Findings::default();
    found.visit_file(&source.syntax);
    found
}

/// An argued block has `SAFETY:` (or, for a function, a `# Safety` section) on its line or just above it.
fn is_argued(text: &str, line: usize) -> bool {
    let first = line.saturating_sub(SAFETY_COMMENT_REACH_LINES);
    text.lines()
        .skip(first)
        .take(line - first)
        .any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
}

impl Findings {
    fn function(&mut self, signature: &syn::Signature, whole: Span) {
        let (first, last) = (whole.start().line, whole.end().line);
        let length = last - signature.span().start().line + 1;
        self.functions += 1;
        if length > LONG_FUNCTION_LINES {
            self.long_functions.push((signature.ident.to_string(), first, length));
        }
        if signature.unsafety.is_some() {
            self.unsafe_lines.push(signature.span().start().line);
        }
    }

    fn public(&mut self, visibility: &syn::Visibility, attributes: &[syn::Attribute]) {
        if matches!(visibility, syn::Visibility::Public(_)) {
            self.public_items += 1;
            if !attributes.iter().any(|attribute| attribute.path().is_ident("doc")) {
                self.undocumented += 1;
            }
        }
    }
}

impl<'ast> Visit<'ast> for Findings {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if is_test_only(&item.attrs) {
            self.test_lines += item.span().end().line + 1 - item.span().start().line;
            let mut inside = Findings::default();
            visit::visit_item_mod(&mut inside, item);
            self.unsafe_lines.extend(inside.unsafe_lines);
            return;
        }
        visit::visit_item_mod(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.public(&item.vis, &item.attrs);
        self.function(&item.sig, item.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.public(&item.vis, &item.attrs);
        self.function(&item.sig, item.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.public(&item.vis, &item.attrs);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.public(&item.vis, &item.attrs);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.public(&item.vis, &item.attrs);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.public(&item.vis, &item.attrs);
        visit::visit_item_const(self, item);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        self.public(&field.vis, &field.attrs);
        visit::visit_field(self, field);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.unsafe_lines.push(block.unsafe_token.span.start().line);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let Some(token) = &item.unsafety {
            self.unsafe_lines.push(token.span.start().line);
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if call.method == "unwrap" || call.method == "expect" {
            self.unwraps += 1;
        }
        visit::visit_expr_method_call(self, call);
    }
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|argument| argument == "test")
    })
}
