//! A browser without a window, where one is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a browser says of a page.
#[derive(Debug)]
pub struct Seen {
    /// Width of the window in CSS pixels.
    pub window: u32,
    /// Width of the content; wider than the window if it has to be scrolled sideways.
    pub content: u32,
    /// The form of the picture that is displayed.
    pub form: String,
}

/// The first browser in PATH.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file())
}

/// Loads a page in a window of this width. The copy that is loaded has a script, which notes the widths; the page itself has none.
pub fn measure(browser: &Path, page: &str, width: u32) -> Result<Seen, String> {
    const NOTE: &str = "<script>const shown=[...document.querySelectorAll('.pic')].filter(p=>getComputedStyle(p).display!='none');\
document.body.innerHTML='';document.body.textContent='seen '+W+' '+C+' '+shown.map(p=>p.classList[1]).join('+')+' end'</script>";
    let widths = "<script>const W=window.innerWidth,C=document.documentElement.scrollWidth</script>";
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("browser-{}-{width}", std::process::id()));
    fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let file = dir.join("page.html");
    fs::write(&file, page.replace("</body>", &format!("{widths}{NOTE}</body>"))).map_err(|e| e.to_string())?;
    let out = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--timeout=30000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .arg(format!("--window-size={width},900"))
        .arg(format!("file://{}", file.display()))
        .stdin(Stdio::null())
        .output();
    let _ = fs::remove_dir_all(&dir);
    let out = out.map_err(|e| format!("{}: {e}", browser.display()))?;
    let dom = String::from_utf8_lossy(&out.stdout).into_owned();
    let said = dom.split_once("seen ").and_then(|(_, rest)| rest.split_once(" end")).map(|(said, _)| said.to_owned());
    let said = said.ok_or_else(|| format!("the browser did not load the page ({})", out.status))?;
    let mut words = said.split(' ');
    let number = |word: Option<&str>| word.and_then(|w| w.parse().ok()).ok_or_else(|| format!("unexpected answer {said}"));
    Ok(Seen { window: number(words.next())?, content: number(words.next())?, form: words.next().unwrap_or_default().to_owned() })
}
