-- Records that a statement deleted a site.
-- needs: note_site_change
create or replace trigger sites_deleted after delete on webhooks.sites
  for each row execute function webhooks.note_site_change();
